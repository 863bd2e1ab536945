"""The JSON that says what exported weights are: that of Hugging Face folders.

Other formats carry the same text, so that an import knows heads, classes,
pooling and the front end, none of which can be read off the tensors.
"""

from typing import Any

from sslam_jax import pretrained

MODEL_TYPE = 'sslam'
_PROBLEMS = {'bce': 'multi_label_classification',
             'ce': 'single_label_classification'}


def model(run: pretrained.Model) -> dict[str, Any]:
  """config.json of a run's model."""
  vit, mel = run.vit, run.config.data.mel
  tree: dict[str, Any] = {
      'model_type': MODEL_TYPE,
      'architectures': ['SslamModel'],
      'auto_map': {
          'AutoConfig': 'configuration_sslam.SslamConfig',
          'AutoModel': 'modeling_sslam.SslamModel',
          'AutoModelForAudioClassification':
              'modeling_sslam.SslamForAudioClassification',
      },
      'hidden_size': vit.width,
      'num_hidden_layers': vit.depth,
      'num_attention_heads': vit.heads,
      'mlp_ratio': vit.mlp_ratio,
      'patch_size': vit.patch,
      'num_mel_bins': mel.mel_bins,
      'sampling_rate': mel.rate_hz,
      'mel_mean': mel.mean,
      'mel_std': mel.std,
      'max_frames': mel.frames,
      'pooling': 'class',
      'head_norm': True,
  }
  return {**tree, **_head(run)} if 'head' in run.params else tree


def preprocessor(run: pretrained.Model) -> dict[str, Any]:
  """preprocessor_config.json of a run's model."""
  mel = run.config.data.mel
  return {
      'feature_extractor_type': 'SslamFeatureExtractor',
      'auto_map': {
          'AutoFeatureExtractor':
              'feature_extraction_sslam.SslamFeatureExtractor',
      },
      'sampling_rate': mel.rate_hz,
      # Whole patches: there frames left over are padded to one, here dropped.
      'max_frames': mel.frames // run.vit.patch * run.vit.patch,
      'feature_size': 1,
      'padding_value': 0.0,
      'return_attention_mask': True,
  }


def _head(run: pretrained.Model) -> dict[str, Any]:
  objective = run.classifier
  return {
      'architectures': ['SslamForAudioClassification'],
      'pooling': objective.head.pooling,
      'head_norm': objective.head.norm,
      'problem_type': _PROBLEMS[objective.loss_kind],
      'bce_divisor': objective.bce_divisor,
      'id2label': {str(i): name for i, name in enumerate(run.classes)},
      'label2id': {name: i for i, name in enumerate(run.classes)},
  }
