"""Words of a command line -> the source a user means."""

import pytest

from sslam_jax import catalogue
from sslam_jax import packs
from sslam_jax import sampling
from sslam_jax import soundscapes
from sslam_jax import sources
from sslam_jax import tfds_source


@pytest.mark.parametrize(('text', 'source'), [
    ('folder=a b', sources.Folder(paths=('a b',))),
    ('folder=a,folder=b', sources.Folder(paths=('a', 'b'))),
    ('manifest=x.tsv', sources.Manifest(path='x.tsv')),
    ('csv=x=y.csv', sources.Csv(path='x=y.csv')),
    ('csv=x,label=class', sources.Csv(path='x', label_column='class')),
    ('path=a b,csv=x,folder=f,csv=y', sampling.Concat(parts=(
        sources.Csv(path='x', path_column='a b'), sources.Folder(paths=('f',)),
        sources.Csv(path='y', path_column='a b')))),
    ('pack=p', packs.Pack(path='p')),
    ('tfds=gtzan', tfds_source.Tfds(name='gtzan', split='train')),
    ('tfds=gtzan:test[:5%]', tfds_source.Tfds(name='gtzan',
                                              split='test[:5%]')),
    ('tfds=gtzan/x:1.0.0', tfds_source.Tfds(name='gtzan/x:1.0.0')),
    ('tfds=gtzan:1.0.0:test', tfds_source.Tfds(name='gtzan:1.0.0',
                                               split='test')),
    ('soundscapes', soundscapes.Soundscapes()),
    ('soundscapes=7', soundscapes.Soundscapes(clips=7)),
    ('soundscapes,length=2.5,seed=3', soundscapes.Soundscapes(
        length_s=2.5, seed=3)),
    ('csv=x,split=test', sources.Csv(path='x', split='test')),
    ('manifest=D,split=eval', sources.Manifest(path='D', split='eval')),
    ('pack=p,soundscapes', sampling.Concat(parts=(
        packs.Pack(path='p'), soundscapes.Soundscapes()))),
    ('soundscapes,folder=a,shares=1:2.5', sampling.Concat(
        parts=(soundscapes.Soundscapes(), sources.Folder(paths=('a',))),
        shares=(1.0, 2.5))),
    ('folder=a,folder=b,shares=1:2', sampling.Concat(
        parts=(sources.Folder(paths=('a',)), sources.Folder(paths=('b',))),
        shares=(1.0, 2.0))),
    ('csv=x,weights=w.csv', sampling.Weighted(source=sources.Csv(path='x'),
                                              weights='w.csv')),
    ('csv=x,weights=labels,epoch=30', sampling.Weighted(
        source=sources.Csv(path='x'), clips_per_epoch=30)),
])
def test_words_name_the_source(text, source):
  assert catalogue.source(text) == source


@pytest.mark.parametrize(('text', 'message'), [
    ('', 'data source: want folder=..., .*; got none'),
    ('weights=labels', 'data source: want folder=..., .*; got none'),
    ('zzz=a', r"'zzz=a': want some of soundscapes\[=...\], folder=..., .*, "
     'path=..., .*epoch=...$'),
    ('fold=a', "'fold=a': want perhaps folder=...$"),
    ('folder=', "'folder=': want perhaps folder=...$"),
    ('folder=a,shares=1:x', "shares: want numbers such as 3:1, got '1:x'"),
    ('folder=a,shares=1:2', 'shares: want 1, one per part'),
    ('folder=a,epoch=3', 'epoch: want it with weights'),
    ('folder=a,weights=labels,epoch=x', "epoch: want a number, got 'x'"),
    ('soundscapes=x', "soundscapes: want a number, got 'x'"),
    ('folder=a,label=class', 'label: want it with csv=...'),
    ('folder=a,path=file', 'path: want it with csv=...'),
    ('pack=a,split=test', 'split: want it with csv=... or manifest=...'),
    ('folder=a,seed=1', 'seed: want it with soundscapes=...'),
    ('soundscapes,length=x', "length: want seconds, got 'x'"),
    ('soundscapes,length=0.01', 'length_s'),
    ('csv=a,csv=b,label=x,label=y', "label: want it once, got 'y' too"),
    ('folder=a,weights=x,weights=y', "weights: want it once, got 'y' too"),
])
def test_wrong_words_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    catalogue.source(text)
