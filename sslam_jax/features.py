"""Features of a frozen encoder: extracted once and kept on disk, or in memory.

Clips longer than the spectrograms that the encoder was trained on are cut
into windows of that length. Patches wholly beyond the end of a clip count in
no mean. Each kind of feature is an .npy file that is read by memory mapping.
"""

import dataclasses
import errno
import fcntl
import functools
import hashlib
import itertools
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh

from sslam_jax import audio
from sslam_jax import clips
from sslam_jax import config as config_lib
from sslam_jax import data as data_lib
from sslam_jax import extract
from sslam_jax import model
from sslam_jax import processes
from sslam_jax import resampling
from sslam_jax import state
from sslam_jax import views

KINDS = {
    'class': 'class token',
    'mean': 'mean of the patch tokens',
    'std': 'their standard deviation',
    'rows': 'their mean over time in each row of patches (mel band)',
    'rows_std': 'their standard deviation over time in each row',
    'patch': 'every patch token, and which of them are of the clip',
}
VALID = 'valid'  # file beside 'patch': bool [clips, patches]
_VERSION = 1
_CHUNK = 1024  # clips written at a time, at most as many are lost by a kill
_CHUNK_BYTES = 2**28
_TOLERANCE = 1e-4  # nats; real frames are never so near 0 in every band

Watch = Callable[[Iterable[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """What turns clips into tokens.

  Attributes:
    vit: The encoder; None: each frame of the log-mel is a token, and there
      are no other kinds than 'mean' and 'std'.
    params: Its parameters.
    mel: The front end, with the length that the encoder was trained on.
    resampler: As trained.
  """

  vit: model.Vit | None
  params: state.Params = dataclasses.field(repr=False)
  mel: audio.LogMel
  resampler: resampling.Resampler = 'sinc_hann'

  def frames(self, length_s: float | None) -> int:
    """Length of the spectrograms that hold clips of `length_s` seconds.

    None is the trained length; longer ones are whole windows of it.
    """
    trained = self.mel.frames
    if length_s is None:
      return trained
    patch = 1 if self.vit is None else self.vit.patch
    wanted = math.ceil(length_s * 100 / patch) * patch
    if wanted < 1 or wanted <= trained:
      return max(wanted, patch)
    return math.ceil(wanted / trained) * trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
  """Features of the clips of a source that can be read, in order.

  Attributes:
    folder: Where they are kept; None: in memory alone.
    ids: Clips.
    labels: Of each clip.
    classes: All labels of the source.
    damaged: (id, reason) of the clips left out.
    arrays: By kind, float32 [clips, ...]; with 'patch' also `VALID`.
  """

  folder: pathlib.Path | None
  ids: tuple[str, ...]
  labels: tuple[tuple[str, ...], ...]
  classes: tuple[str, ...]
  damaged: tuple[tuple[str, str], ...]
  arrays: dict[str, np.ndarray] = dataclasses.field(repr=False)


def extracted(
    network: Network,
    source: clips.Source,
    kinds: Iterable[str],
    cache: pathlib.Path,
    *,
    length_s: float | None = None,
    batch: int = 32,
    threads: int = 16,
    watch: Watch = iter,
) -> Features:
  """Features from the cache, where they are computed first if need be.

  They are found again by a hash of the weights, the front end and `kinds`; of
  the configuration of the source, the labels of all clips and the lengths of
  some. So audio that was replaced by audio of the same length goes unnoticed
  (in mixtures by any audio): remove the folder then. A killed extraction goes
  on where it was.

  Args:
    network: What computes them.
    source: The clips.
    kinds: Of `KINDS`.
    cache: Folder of folders, one for each hash.
    length_s: What is heard of a clip, from its start; None: as in training.
    batch: Clips at a time.
    threads: That read.
    watch: Is given the clips as they are done, and yields them: a bar.

  Raises:
    ValueError: Nothing can be read, the disk is too small, or the same is
      being extracted by another process.
  """
  kinds = tuple(dict.fromkeys(kinds))
  _check_kinds(kinds, network)
  frames = network.frames(length_s)
  folder = cache / key(network, source, kinds, frames)
  if not folder.exists():
    shapes = _shapes(network, kinds, frames)
    _check_space(cache, shapes, len(source))
    extractor = _shared(
        _vit_json(network), config_lib.to_json(network.mel), kinds, frames,
        batch, network.resampler, threads,
    )
    run = functools.partial(extractor, network.params, source)
    _write(folder, source, shapes, run, watch)
  return load(folder)


class Pass:
  """Features in memory, compiled once for whatever weights there are later."""

  def __init__(
      self,
      network: Network,
      kinds: Iterable[str],
      *,
      length_s: float | None = None,
      batch: int,
      mesh: Mesh,
      threads: int = 16,
  ) -> None:
    """See `extracted`; the parameters of `network` are not looked at."""
    self._kinds = tuple(dict.fromkeys(kinds))
    _check_kinds(self._kinds, network)
    self._network, self._frames = network, network.frames(length_s)
    self._extract = _extractor(
        network, self._kinds, self._frames, batch, mesh, threads
    )

  def __call__(self, params: state.Params, source: clips.Source) -> Features:
    """Features by an encoder's parameters.

    Of several processes each computes those of its devices, and gets all.

    Raises:
      ValueError: Nothing can be read.
    """
    told: list[tuple[int, str, str | None]] = []
    good: list[extract.Extracted] = []
    for clip in self._extract(params, source):
      reason = None if clip.error is None else clip.error.reason
      told.append((clip.number, clip.id, reason))
      good += [clip] if reason is None else []
    told = sorted(map(tuple, processes.gather(told)))
    kept = [(number, name) for number, name, reason in told if reason is None]
    if not kept:
      first = ''.join(f'; the first: {x[1]}: {x[2]}' for x in told[:1])
      raise ValueError(f'want readable clips, got none{first}')
    numbers, ids = zip(*kept)
    order_N = np.argsort(processes.gather_rows(
        np.array([clip.number for clip in good], np.int32)
    ))
    network = dataclasses.replace(self._network, params=params)
    arrays = {}
    for name, shape in _shapes(network, self._kinds, self._frames).items():
      # A process that read nothing knows the shape all the same.
      rows = np.zeros((len(good), *shape.shape), shape.dtype)
      for row, clip in zip(rows, good):
        row[...] = clip.output[name]
      arrays[name] = processes.gather_rows(rows)[order_N]
    return Features(
        folder=None,
        ids=ids,
        labels=tuple(map(source.labels, numbers)),
        classes=source.classes,
        damaged=tuple((name, reason) for _, name, reason in told
                      if reason is not None),
        arrays=arrays,
    )


def size(
    network: Network, kinds: Iterable[str], length_s: float | None, count: int
) -> int:
  """Bytes on disk of the features of so many clips."""
  shapes = _shapes(network, tuple(kinds), network.frames(length_s))
  return count * _clip_bytes(shapes)


def load(folder: pathlib.Path) -> Features:
  """The features in a folder of the cache."""
  tree = json.loads((folder / 'features.json').read_text(encoding='utf-8'))
  with open(folder / 'clips.jsonl', encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  good_M = np.array([row['error'] is None for row in rows], bool)
  if not good_M.any():
    raise ValueError(f'want readable clips, got none; the first: '
                     f'{rows[0]["id"]}: {rows[0]["error"]}')
  arrays = {}
  for name in tree['shapes']:
    array = np.load(folder / f'{name}.npy', mmap_mode='r')
    arrays[name] = array if good_M.all() else array[good_M]
  kept = list(itertools.compress(rows, good_M))
  return Features(
      folder=folder,
      ids=tuple(row['id'] for row in kept),
      labels=tuple(tuple(row['labels']) for row in kept),
      classes=tuple(tree['classes']),
      damaged=tuple((row['id'], row['error']) for row in rows
                    if row['error'] is not None),
      arrays=arrays,
  )


def key(
    network: Network, source: clips.Source, kinds: tuple[str, ...], frames: int
) -> str:
  """The name of a folder of the cache; see `extracted`."""
  digest = hashlib.sha256()
  leaves = jax.tree_util.tree_leaves_with_path(network.params)
  for path, leaf in leaves:
    array = np.asarray(leaf)
    digest.update(f'{path} {array.shape} {array.dtype}'.encode())
    digest.update(array.tobytes())
  parts = [_VERSION, _vit_json(network), config_lib.to_json(network.mel),
           network.resampler, sorted(kinds), frames,
           config_lib.to_json(source), source.classes, len(source),
           data_lib.fingerprint(source)]
  digest.update(json.dumps(parts).encode())
  for index in range(len(source)):
    digest.update('\t'.join((*source.labels(index), '\n')).encode())
  return digest.hexdigest()[:20]


def tokens(
    vit: model.Vit | None,
    mel: audio.LogMel,
    kinds: tuple[str, ...],
    params: state.Params,
    mel_BxTxF: Array,
) -> dict[str, Array]:
  """The features of spectrograms, float32 [B, ...] of each kind.

  Args:
    vit: See `Network`.
    mel: Of the length that the encoder was trained on.
    kinds: Of `KINDS`.
    params: Of the encoder.
    mel_BxTxF: Of that length, less, or a multiple of it.
  """
  real_BxT = _is_real(mel_BxTxF, mel)
  if vit is None:
    return _pooled(kinds, None, mel_BxTxF, real_BxT, rows=1)
  trained = min(mel.frames, mel_BxTxF.shape[1])
  windows = mel_BxTxF.shape[1] // trained
  batch, _, mel_bins = mel_BxTxF.shape
  time, rows = vit.grid(trained, mel_bins)
  encoded: Any = model.Encoder(vit).apply(
      {'params': params}, mel_BxTxF.reshape(batch * windows, trained, mel_bins)
  )
  real_BxWxT = real_BxT.reshape(batch, windows, trained)
  real_BxWxT = real_BxWxT[..., : time * vit.patch]
  column_BxWxC = real_BxWxT.reshape(batch, windows, time, -1).any(-1)
  valid_BxN = jnp.repeat(column_BxWxC, rows, axis=-1).reshape(batch, -1)
  patch_BxNxD = encoded.patch_RxKxD.astype(jnp.float32)
  patch_BxNxD = patch_BxNxD.reshape(*valid_BxN.shape, -1)
  clip_BxWxD = encoded.clip_RxD.astype(jnp.float32)
  clip_BxWxD = clip_BxWxD.reshape(batch, windows, -1)
  clip_BxD = _mean(clip_BxWxD, column_BxWxC.mean(-1))
  return _pooled(kinds, clip_BxD, patch_BxNxD, valid_BxN, rows)


def _pooled(
    kinds: tuple[str, ...],
    clip_BxD: Array | None,
    token_BxNxD: Array,
    valid_BxN: Array,
    rows: int,
) -> dict[str, Array]:
  batch, _, width = token_BxNxD.shape
  mean_BxD = _mean(token_BxNxD, valid_BxN)
  column_BxCxE = token_BxNxD.reshape(batch, -1, rows * width)
  valid_BxC = valid_BxN[:, ::rows]
  found = {
      'class': clip_BxD,
      'mean': mean_BxD,
      'std': _std(token_BxNxD, valid_BxN),
      'rows': _mean(column_BxCxE, valid_BxC),
      'rows_std': _std(column_BxCxE, valid_BxC),
      'patch': token_BxNxD,
      VALID: valid_BxN,
  }
  names = (*kinds, VALID) if 'patch' in kinds else kinds
  return {name: array for name in names if (array := found[name]) is not None}


def _mean(x_BxNxD: Array, weight_BxN: Array) -> Array:
  weight_BxN = weight_BxN.astype(jnp.float32)
  total_Bx1 = jnp.sum(weight_BxN, 1, keepdims=True)
  return jnp.einsum('bnd,bn->bd', x_BxNxD, weight_BxN / total_Bx1,
                    precision='highest')


def _std(x_BxNxD: Array, weight_BxN: Array) -> Array:
  mean_BxD = _mean(x_BxNxD, weight_BxN)
  return jnp.sqrt(_mean((x_BxNxD - mean_BxD[:, None]) ** 2, weight_BxN))


def _is_real(mel_BxTxF: Array, mel: audio.LogMel) -> Array:
  """Which frames are of the clip, at least the first: bool [B, T].

  Those beyond its end are 0.0 in nats, see `audio.LogMel`.
  """
  nats_BxTxF = mel_BxTxF * (2 * mel.std) + mel.mean
  real_BxT = jnp.any(jnp.abs(nats_BxTxF) > _TOLERANCE * mel.std, axis=-1)
  return real_BxT.at[:, 0].set(True)


def _check_kinds(kinds: tuple[str, ...], network: Network) -> None:
  known = tuple(KINDS) if network.vit is not None else ('mean', 'std')
  unknown = [kind for kind in kinds if kind not in known]
  if unknown or not kinds:
    raise ValueError(f'features: want some of {", ".join(known)}, '
                     f'got {", ".join(unknown) or "none"}')


def _shapes(
    network: Network, kinds: tuple[str, ...], frames: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Of the features of one clip."""
  mel_1xTxF = jax.ShapeDtypeStruct((1, frames, network.mel.mel_bins),
                                   jnp.float32)
  found = jax.eval_shape(
      functools.partial(tokens, network.vit, network.mel, kinds),
      network.params, mel_1xTxF,
  )
  return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
          for name, x in found.items()}


def _clip_bytes(shapes: dict[str, jax.ShapeDtypeStruct]) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes.values())


def _check_space(
    cache: pathlib.Path, shapes: dict[str, jax.ShapeDtypeStruct], count: int
) -> None:
  cache.mkdir(parents=True, exist_ok=True)
  needed, free = count * _clip_bytes(shapes), shutil.disk_usage(cache).free
  if needed > free:
    raise ValueError(f'{cache}: want {needed / 1e9:.1f} GB for the features '
                     f'({", ".join(shapes)}), got {free / 1e9:.1f} GB free')


def _vit_json(network: Network) -> str | None:
  return None if network.vit is None else config_lib.to_json(network.vit)


@functools.lru_cache(maxsize=8)
def _shared(
    vit: str | None,
    mel: str,
    kinds: tuple[str, ...],
    frames: int,
    batch: int,
    resampler: resampling.Resampler,
    threads: int,
) -> extract.Extractor:
  """Compiled once for all sources, and for all weights of a network."""
  network = Network(
      vit=None if vit is None else config_lib.from_json(vit), params={},
      mel=config_lib.from_json(mel), resampler=resampler,
  )
  return _extractor(network, kinds, frames, batch, _mesh(batch), threads)


def _extractor(
    network: Network,
    kinds: tuple[str, ...],
    frames: int,
    batch: int,
    mesh: Mesh,
    threads: int,
) -> extract.Extractor:
  return extract.Extractor(
      functools.partial(tokens, network.vit, network.mel, kinds),
      dataclasses.replace(network.mel, frames=frames),
      batch=batch, mesh=mesh, resampler=network.resampler, threads=threads,
  )


def _mesh(batch: int) -> Mesh:
  """As many devices as a batch can be spread over."""
  devices = jax.devices()[: math.gcd(batch, jax.device_count())]
  return Mesh(np.array(devices), (views.AXIS,), axis_types=(AxisType.Auto,))


def _write(
    folder: pathlib.Path,
    source: clips.Source,
    shapes: dict[str, jax.ShapeDtypeStruct],
    run: Callable[..., Iterator[extract.Extracted]],
    watch: Watch,
) -> None:
  """Fills `folder`, which exists only when all is there."""
  part = folder.with_suffix('.part')
  part.mkdir(exist_ok=True)
  with open(part / 'lock', 'w') as lock, open(
      part / 'clips.jsonl', 'ab+'
  ) as list_file:
    _take(lock, folder)
    done = _complete_lines(list_file)
    arrays = {name: _open(part / f'{name}.npy', len(source), shape)
              for name, shape in shapes.items()}
    chunk = max(1, min(_CHUNK, _CHUNK_BYTES // _clip_bytes(shapes)))
    clips_done = iter(watch(run(first=done)) if done < len(source) else ())
    while rows := list(itertools.islice(clips_done, chunk)):
      for name, array in arrays.items():
        _store(array, name, rows)
      # A listed clip has its features: they are on the disk before it.
      list_file.write(''.join(map(_line, rows)).encode())
      list_file.flush()
    tree = {'classes': source.classes,
            'shapes': {name: x.shape for name, x in shapes.items()}}
    (part / 'features.json').write_text(json.dumps(tree, indent=1) + '\n',
                                        encoding='utf-8')
    (part / 'lock').unlink()
    part.rename(folder)


def _take(lock: Any, folder: pathlib.Path) -> None:
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno not in (errno.EAGAIN, errno.EACCES):
      raise
    raise ValueError(f'{folder}: want it for one process, got another that '
                     f'extracts the same') from None


def _complete_lines(file: Any) -> int:
  """Their number; what a kill left of one more is cut off."""
  file.seek(0)
  text = file.read()
  file.truncate(text.rfind(b'\n') + 1)
  return text.count(b'\n')


def _open(
    path: pathlib.Path, count: int, shape: jax.ShapeDtypeStruct
) -> np.ndarray:
  if path.exists():
    return np.lib.format.open_memmap(path, mode='r+')
  return np.lib.format.open_memmap(
      path, mode='w+', dtype=shape.dtype, shape=(count, *shape.shape)
  )


def _store(array: Any, name: str, rows: list[extract.Extracted]) -> None:
  for row in rows:
    if row.error is None:
      array[row.number] = row.output[name]
  array.flush()


def _line(row: extract.Extracted) -> str:
  error = None if row.error is None else row.error.reason
  return json.dumps(
      {'id': row.id, 'labels': row.labels, 'error': error}
  ) + '\n'
