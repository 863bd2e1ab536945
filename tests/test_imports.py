"""Who may import whom: the layers that keep each file readable alone."""

import ast
import pathlib

_ROOT = pathlib.Path(__file__).parent.parent

# Module -> the modules of ours that it may import.
ALLOWED = {
    '__init__': {'inference'},
    'config': set(),
    'sweeping': set(),
    'clips': set(),
    'audio': set(),
    'masking': set(),
    'mixing': {'audio'},
    'model': set(),
    'targets': set(),
    'losses': set(),
    'optim': set(),
    'state': set(),
    'torch_io': {'model'},
    'errors': set(),
    'torch_files': {'errors', 'torch_io'},
    'torch_settings': {'audio', 'model', 'torch_files'},
    'report': set(),
    'processes': set(),
    'reading': set(),
    'watch': {'errors', 'processes'},
    'skips': set(),
    'run_folder': {'config', 'report'},
    'resampling': set(),
    'containers': set(),
    'decoding': {'clips', 'containers', 'reading'},
    'sources': {'clips', 'decoding'},
    'soundscapes': {'clips'},
    'polyphony': {'clips', 'resampling'},
    'packs': {'clips', 'decoding', 'reading'},
    'tfds_source': {'clips', 'decoding', 'errors'},
    'tfds_soundscapes': {'soundscapes'},
    'sampling': {'clips'},
    'catalogue': {'clips', 'config', 'packs', 'polyphony', 'sampling',
                  'soundscapes', 'sources', 'tfds_source'},
    'metrics': set(),
    'augment': set(),
    'views': {'audio', 'augment', 'clips', 'masking', 'mixing'},
    'checkpoint': {'errors', 'state'},
    'pictures': {'views'},
    'data': {'audio', 'clips', 'processes', 'reading', 'resampling',
             'sampling', 'views'},
    'objectives': {'clips', 'losses', 'mixing', 'model', 'state', 'targets',
                   'views'},
    'classify': {'clips', 'losses', 'model', 'objectives', 'state', 'views'},
    'extract': {'audio', 'clips', 'data', 'processes', 'resampling', 'state',
                'views'},
    'evaluate': {'classify', 'clips', 'data', 'extract', 'features', 'metrics',
                 'objectives', 'probes', 'probing', 'processes', 'state'},
    'pretrained': {'checkpoint', 'classify', 'model', 'run_folder', 'state',
                   'train'},
    'train': {'checkpoint', 'data', 'evaluate', 'objectives', 'optim',
              'pictures', 'processes', 'report', 'run_folder', 'skips', 'state',
              'views', 'watch'},
    'windows': {'audio', 'clips'},
    'inference': {'clips', 'decoding', 'extract', 'model', 'pretrained',
                  'state', 'views', 'windows'},
    'output': {'windows'},
    'recordings': {'clips', 'decoding', 'sources'},
    'timeline': {'clips', 'inference', 'output', 'pictures', 'windows'},
    'infer': {'clips', 'inference', 'output', 'pictures', 'recordings',
              'timeline'},
    'features': {'audio', 'clips', 'config', 'data', 'extract', 'model',
                 'processes', 'resampling', 'state', 'views'},
    'probes': {'metrics'},
    'probing': {'clips', 'features', 'metrics', 'probes'},
    'huge_pages': set(),
    'main': {'config', 'huge_pages', 'processes', 'train', 'watch'},
}  # fmt: skip
# Imported where used.
_HEAVY = {'matplotlib', 'librosa', 'torch', 'sklearn', 'pyarrow', 'safetensors'}


def imports(path, *, top_level):
  """Modules that a file imports, as dotted names."""
  tree = ast.parse(path.read_text(encoding='utf-8'))
  nodes = tree.body if top_level else ast.walk(tree)
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_package_imports_follow_the_layers():
  found = {}
  for path in (_ROOT / 'sslam_jax').glob('*.py'):
    names = {n.split('.')[1] for n in imports(path, top_level=False)
             if n.startswith('sslam_jax.')}
    found[path.stem] = names
  assert found.keys() == ALLOWED.keys()
  wrong = {name: names - ALLOWED[name] for name, names in found.items()
           if names - ALLOWED[name]}
  assert not wrong


def test_nothing_in_the_package_imports_configs_or_tools():
  for path in (_ROOT / 'sslam_jax').glob('*.py'):
    for name in imports(path, top_level=False):
      assert not name.startswith(('configs', 'tools', 'tests')), path


def test_extras_and_slow_libraries_are_imported_where_used():
  for path in (_ROOT / 'sslam_jax').glob('*.py'):
    top = {name.split('.')[0] for name in imports(path, top_level=True)}
    assert not top & _HEAVY, path
