"""The capacity tool: points of real reports' shape, on lines that are known."""

import json

import pytest

from sslam_jax import config as config_lib
from tests import tiny
from tools import capacity

_FIXED_S, _PER_CLONE_S, _PER_STEP_S = 0.5, 0.25, 3.0


def _report(folder, name, *, clones=2, batch=8, devices=1, off=1.0, **fields):
  """A report in which a clip costs what the constants say."""
  config = tiny.stage2('nowhere', batch=batch, devices=devices)
  config.data.views.clones = clones
  config.data.views.mix.group = batch // devices
  local = batch / devices
  step_s = local * (_FIXED_S + _PER_CLONE_S * clones) + _PER_STEP_S
  report = {
      'machine': {'cpu': 'C', 'devices': f'{devices} x D', 'is_quiet': True},
      'config': json.loads(config_lib.to_json(config)),
      'step': {'batch': batch, 'devices': devices, 'step_s': off * step_s,
               'gflop_per_clip': 4.0 + clones, 'matmul_share': 0.5,
               'program_bytes': 2**21},
      **fields,
  }
  path = folder / f'{name}.json'
  path.write_text(json.dumps(report))
  return path


def _fits(files, clips=3600):
  found = capacity.fit(capacity.load(files), clips)
  return {fit.axis.name: fit for fit in found}


def test_lines_are_those_of_the_known_costs(tmp_path):
  files = [_report(tmp_path, f'c{n}', clones=n) for n in (1, 2, 4)]
  files += [_report(tmp_path, f'b{n}', batch=n) for n in (4, 16)]
  files += [_report(tmp_path, 'd2', batch=16, devices=2)]
  fits = _fits(files)
  # Hours of 3600 clips are the seconds of one.
  line = fits['clones'].line
  assert line.slope == pytest.approx(_PER_CLONE_S)
  assert line.intercept == pytest.approx(_FIXED_S + _PER_STEP_S / 8)
  line = fits['clips per device'].line
  assert line.slope == pytest.approx(_PER_STEP_S)
  assert line.intercept == pytest.approx(_FIXED_S + 2 * _PER_CLONE_S)
  assert [p.batch for p in fits['clips per device'].points] == [4, 8, 16]
  line = fits['GFLOP per clip'].line
  assert line.slope == pytest.approx(_PER_CLONE_S)
  line = fits['devices'].line
  assert line.slope == pytest.approx(0, abs=1e-9)
  assert fits['devices'].hours == pytest.approx([1.375, 1.375])


def test_residuals_are_shares_of_what_was_measured(tmp_path):
  files = [_report(tmp_path, f'c{n}', clones=n) for n in (1, 3)]
  files.insert(1, _report(tmp_path, 'c2', clones=2, off=1.3))
  fit = _fits(files)['clones']
  assert fit.residuals[1] > 0 > fit.residuals[0]
  assert [y * (1 - r) for y, r in zip(fit.hours, fit.residuals)] == (
      pytest.approx([fit.at(x) for x in (1, 2, 3)]))
  assert sum(y - fit.at(x) for x, y in zip((1, 2, 3), fit.hours)) == (
      pytest.approx(0, abs=1e-9))


def test_points_that_differ_in_more_make_no_line(tmp_path):
  files = [_report(tmp_path, 'a', clones=1, batch=4),
           _report(tmp_path, 'b', clones=2, batch=8)]
  assert not _fits(files)


def test_timed_scaling_gives_points_too(tmp_path):
  rows = [{'devices': n, 'batch': 8 * n, 'step_s': s, 'device_gflop': 48.0,
           'program_bytes': None} for n, s in ((1, 8.0), (2, 8.8), (4, None))]
  file = _report(tmp_path, 'a', scaling=rows)
  fit = _fits([file])['devices']
  assert {p.devices for p in fit.points} == {1, 2}
  assert fit.points[-1].clip_s == pytest.approx(1.1)
  assert fit.points[-1].gflop == pytest.approx(6.0)


def test_table_and_files(tmp_path, capsys):
  files = [_report(tmp_path, f'c{n}', clones=n, loop={'waiting_share': 0.25})
           for n in (1, 2, 4)]
  out = tmp_path / 'capacity'
  args = [*map(str, files), '--clips=7200', f'--out={out}']
  assert capacity.main(args) == 0
  printed = capsys.readouterr().out
  assert 'clones: hours = a + b * clones, a = 1.75, b = 0.5' in printed
  assert '| 4 | 3.75 | 3.75 | +0.0 % |' in printed
  assert '| 50.0 % | 25.0 % | 2 |' in printed
  assert 'devices: no line' in printed
  written = json.loads((tmp_path / 'capacity.json').read_text())
  hours = written['lines'][0]['device_hours']
  assert hours == pytest.approx([2.25, 2.75, 3.75])
  assert (tmp_path / 'capacity.png').read_bytes().startswith(b'\x89PNG')


def test_reports_that_cannot_be_used_are_named(tmp_path, capsys):
  good = _report(tmp_path, 'good')
  other = _report(tmp_path, 'other', machine={
      'cpu': 'C2', 'devices': '1 x D', 'is_quiet': False})
  no_step = _report(tmp_path, 'no_step', step=None)
  broken = tmp_path / 'broken.json'
  broken.write_text('[')
  for files, wanted in [
      ([good, other], "want one kind of machine, got ('D', 'C') in "),
      ([no_step], 'no_step.json: want a report of pre-training with the part'),
      ([broken], 'broken.json: want a report of tools/benchmark.py, got JSON'),
      ([tmp_path / 'none.json'], 'none.json'),
      ([good, '--out=x'], '--out: want two reports that differ'),
  ]:
    assert capacity.main([str(file) for file in files]) == 2
    printed = capsys.readouterr().err
    assert wanted in printed
    assert ('other.json: the machine was not quiet' in printed) == (
        other in files)
