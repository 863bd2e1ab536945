"""Where should two sounds be added, and how loud?

  python tools/sweep.py --config=configs/sweeps/mixing_domain.py \
      --workdir=runs/mixing_domain

  max        maximum of the normalised log-mels (published)
  log_mean   their mean: a sum in the log domain
  power      log of the sum of the mel powers: sounds without a common phase
  wave       log-mel of the sum of the waveforms, as loud as they are
  wave_...   the partner scaled to a signal-to-noise ratio of 0 dB, or one that
             is drawn for each pair from -5 to 5, or from 0 to 10 dB

Held equal: stage 1, clips, updates, masks, mixed columns, the step's
arithmetic. Not equal: waveforms take a second pass of the front end, and where
a ratio is drawn the excerpts of clips that are longer than the spectrogram
(whose start is drawn after it) are others.

Arguments: those of configs/stage2.py (`mb_pma`, `mb_ua_pma`: without source
retention).
"""

from collections.abc import Iterator
from typing import Any

from configs import stage2

_SNR_DB = {
    'wave': None,
    'wave_0_db': (0.0, 0.0),
    'wave_-5_to_5_db': (-5.0, 5.0),
    'wave_0_to_10_db': (0.0, 10.0),
}

get_config = stage2.get_config


def sweep(arg: str = '') -> Iterator[dict[str, Any]]:
  del arg
  for how in ('max', 'log_mean', 'power'):
    yield {'name': how, 'data.views.mix.how': how}
  for name, snr_db in _SNR_DB.items():
    yield {'name': name, 'data.views.mix.how': 'wave',
           'data.views.mix.snr_db': snr_db}
