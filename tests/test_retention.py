"""Capability preservation across emotions: the base stays whole, the order does not matter, adapters swap
and mix, runs go on, own emotions work."""
import csv, json, shutil, subprocess, sys
from pathlib import Path

import pytest, soundfile as sf

from csm_expressive_nb import cli, expressive, road
from csm_expressive_nb.core import EmotionConfig, ExpressiveConfig, Run, make_config
from csm_expressive_nb.continual import evaluation_sentences
from csm_expressive_nb.dataset import dataset_of
from csm_expressive_nb.fisher import deltas, factors, matrices
from csm_expressive_nb.model import load_adapter, load_csm, weights_hash
from csm_expressive_nb.speak import speak

ROOT = Path(__file__).parents[1]
SMALL = dict(
    steps=3, batch=4, rank=4, sentences=8, trackers=[], validate_every=0, ewc_clips=8, ewc_pilot=2, buffer=24
)
bytes_of = lambda folder: (Path(folder) / 'adapter/adapter_model.safetensors').read_bytes()

def fitted(model, processor, folder, **kw):
    cfg = make_config(EmotionConfig, out=str(folder), **SMALL | kw)
    run = road.open_run(cfg)
    return road.fit(cfg, run, model, processor, road.prepare(cfg, run, model, processor), show=False)

@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    "Three emotions one after another on one base in one process, each with another retention term"
    d = tmp_path_factory.mktemp('chain')
    model, processor = load_csm()
    hashes = [weights_hash(model)]
    for e, kw in dict(
        happy=dict(ewc=1.0),
        sad=dict(distillation=0.5, distillation_cache=8),
        neutral=dict(rehearsal=0.0, ewc=1.0, ewc_fisher='factor'),
    ).items():
        lora = fitted(model, processor, d / e, emotion=e, **kw)
        model = lora.unload()
        hashes.append(weights_hash(model))
    return d, hashes

@pytest.mark.slow
def test_the_base_is_untouched_and_the_order_does_not_matter(chain, tmp_path):
    d, hashes = chain
    assert len(hashes) == 4 and set(hashes) == {weights_hash(load_csm()[0])}
    # sad alone, first
    fitted(*load_csm(), tmp_path / 'sad', emotion='sad', distillation=0.5, distillation_cache=8)
    assert bytes_of(tmp_path / 'sad') == bytes_of(d / 'sad')
    assert ('ewc' in json.loads((d/'happy/metrics.jsonl').read_text().splitlines()[-1])
            and json.loads((d/'happy/ewc.json').read_text())['fisher']['split_half'] > 0)

@pytest.mark.slow
def test_adapters_hot_swap_with_equal_output(chain):
    d, _ = chain
    texts = evaluation_sentences()[:2]
    say = lambda m, p: [s.codes.tolist() for s in speak(m, p, texts, [1, 2], '~', show=False)]
    alone = {}
    for e in ('happy', 'sad'):
        model, processor = load_csm()
        alone[e] = say(load_adapter(model, d / e / 'adapter'), processor)
    model, processor = load_csm()
    both = load_adapter(model, d / 'happy/adapter')
    both.load_adapter(str(d / 'sad/adapter'), 'sad')
    for name, e in (('default', 'happy'), ('sad', 'sad'), ('default', 'happy')):
        both.set_adapter(name)
        assert say(both.eval(), processor) == alone[e]
    with both.disable_adapter(): off = say(both, processor)
    assert off == say(*load_csm()) and alone['happy'] != alone['sad']

@pytest.mark.slow
def test_cat_is_the_sum_of_deltas_and_linear_is_not(chain):
    d, _ = chain
    model, _ = load_csm()
    both = load_adapter(model, d / 'happy/adapter')
    both.load_adapter(str(d / 'sad/adapter'), 'sad')
    both.add_weighted_adapter(['default', 'sad'], [0.5, 0.5], 'cat', combination_type='cat')
    both.add_weighted_adapter(['default', 'sad'], [0.5, 0.5], 'linear', combination_type='linear')
    delta = lambda m, k: (lambda s, A, B: s * B @ A)(*factors(m, k))
    worst = {
        k: max(
            float(
                (delta(m, k) - (delta(m, 'default') + delta(m, 'sad')) / 2).norm()
                / delta(m, 'default').norm()
            )
            for m in matrices(both).values()
        )
        for k in ('cat', 'linear')
    }
    assert worst['cat'] < 1e-5 < 0.05 < worst['linear']

@pytest.mark.slow
@pytest.mark.parametrize(
    'kw',
    [dict(ewc=1.0, distillation=0.5), dict(ewc=2.0, ewc_fisher='ones', rehearsal=0.0)],
    ids=['ewc and distillation', 'L2'],
)
def test_a_resumed_run_ends_with_the_same_bytes(kw, tmp_path):
    kw = kw | dict(emotion='angry', steps=6, checkpoint_every=3)
    fitted(*load_csm(), tmp_path / 'whole', **kw)
    cut = tmp_path / 'cut'
    shutil.copytree(tmp_path / 'whole', cut)
    shutil.rmtree(cut / 'adapter')
    (cut / 'config.yaml').unlink()
    (last,) = cut.glob('checkpoints/00000006-*')
    last.unlink()
    fitted(*load_csm(), cut, **kw)
    assert (
        bytes_of(cut) == bytes_of(tmp_path / 'whole')
        and (cut / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole/metrics.jsonl').read_bytes()
    )

@pytest.mark.slow
def test_an_emotion_starts_from_a_general_run(tmp_path):
    cfg = ExpressiveConfig(
        out=str(tmp_path / 'general'),
        emotions=['sad', 'angry'],
        steps=3,
        batch=4,
        rank=4,
        trackers=[],
        validate_every=0,
        monitor='',
        sample_every=0,
    )
    run = expressive.open_expressive(cfg)
    tags = expressive.tags_of(cfg)
    model, processor = load_csm()
    data = road.prepare(cfg, run, model, processor, tags)
    general = road.fit(cfg, run, model, processor, data, tags, show=False)
    D = deltas(general)
    lora = fitted(
        *road.load_base(make_config(emotion='sad', base=str(tmp_path / 'general'))),
        tmp_path / 'sad',
        emotion='sad',
        base=str(tmp_path / 'general'),
    )
    plain = matrices(load_csm()[0])
    # base of the emotion = base + delta of the general run
    assert (
        max(
            float((m.base_layer.weight - plain[n].weight - D[n]).abs().max())
            for n, m in matrices(lora).items()
        )
        < 1e-6
    )
    assert weights_hash(load_csm(str(tmp_path / 'general/merged'))[0]) == weights_hash(lora) and load_adapter(
        load_csm(str(tmp_path / 'general/merged'))[0], tmp_path / 'sad/adapter'
    )
    with pytest.raises(ValueError, match='set `model` to nano'):
        road.merged(tmp_path / 'general', 'csm-1b')
    with pytest.raises(FileNotFoundError, match='finished general stage'):
        road.merged(tmp_path / 'nothing')

def own_voice(folder: Path) -> Path:
    "A folder of 'recordings' with an emotion that no corpus knows"
    ds, rows = dataset_of(), []
    (folder / 'wav').mkdir(parents=True)
    for c in ds.clips:
        if c.emotion in ('neutral', 'surprised') and int(c.sentence if c.sentence.isdigit() else 0) % 2 == 0:
            f = f'wav/{c.id.replace("/", "_")}.wav'
            sf.write(folder / f, ds.audio(c), 24_000, subtype='FLOAT')
            rows.append(
                dict(
                    file=f,
                    text=c.text,
                    emotion='pirate' if c.emotion == 'surprised' else 'neutral',
                    speaker=c.speaker,
                    sex=c.sex,
                )
            )
    with open(folder / 'metadata.csv', 'w', newline='') as f:
        w = csv.DictWriter(f, rows[0])
        w.writeheader()
        w.writerows(rows)
    return folder

@pytest.mark.slow
def test_an_emotion_of_ones_own_needs_no_code_and_one_failure_loses_nothing(tmp_path, short_speech):
    source = own_voice(tmp_path / 'mine')
    command = ['prepare', 'folder', '--source', source, '--out', tmp_path / 'ds', '--own', 'pirate']
    assert not cli.app([str(word) for word in command], standalone_mode=False)
    cfg = make_config(EmotionConfig, source=str(tmp_path / 'ds'), emotion='pirate', **SMALL)
    done = road.emotions_run(cfg, ['pirat', 'pirate'], tmp_path / 'out', show=False)
    assert (
        done['pirate'] == 'done'
        and done['pirat'].startswith('failed')
        and "did you mean 'pirate'? It has neutral, pirate" in done['pirat']
        and 'Traceback' in (tmp_path / 'out/pirat/error.txt').read_text()
    )
    report = json.loads((tmp_path / 'out/pirate/report.json').read_text())
    assert (
        report['judge']['emotions'] == ['neutral', 'pirate']
        and (tmp_path / 'out/pirate/samples/0_pirate.wav').exists()
        and (tmp_path / 'out/pirate/index.html').exists()
    )
    before = (tmp_path / 'out/pirate/report.json').stat().st_mtime_ns
    assert (
        road.emotions_run(cfg, ['pirate'], tmp_path / 'out', show=False) == dict(pirate='finished before')
        and (tmp_path / 'out/pirate/report.json').stat().st_mtime_ns == before
    )
    # the raw folder, too
    cfg = make_config(EmotionConfig, source=str(source), emotion='pirate', out=str(tmp_path / 'raw'))
    run = Run(tmp_path / 'raw', cfg)
    assert road.prepare(cfg, run, *load_csm()).target
    with pytest.raises(ValueError, match='unknown_emotion'):
        road.prepare(cfg.model_copy(update=dict(emotion='pirat')), run, *load_csm())

@pytest.mark.slow
def test_neutral_is_an_emotion_like_the_others(tmp_path):
    """Through papermill and in this process: the same report, byte for byte; no share of a shift that is
    not there"""
    small = {
        k: v for k, v in SMALL.items() if k not in ('trackers', 'validate_every', 'ewc_clips', 'ewc_pilot')
    }
    args = [
        x
        for k, v in (small | dict(emotion='neutral', ewc=1.0, out=tmp_path / 'a')).items()
        for x in ('-p', k, str(v))
    ]
    r = subprocess.run(
        [sys.executable, '-m', 'papermill', str(ROOT / 'nbs/20_emotion.ipynb'), '-', *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr[-3000:]
    road.emotion_run(
        make_config(EmotionConfig, emotion='neutral', ewc=1.0, out=str(tmp_path / 'b'), **small), show=False
    )
    assert (tmp_path / 'a/report.json').read_bytes() == (tmp_path / 'b/report.json').read_bytes()
    assert all(
        g['share']['value'] is None
        for g in json.loads((tmp_path / 'a/report.json').read_text())['gap'].values()
    )

@pytest.mark.slow
def test_the_comparison_runs_as_a_notebook(tmp_path):
    args = [
        x
        for k, v in dict(out=tmp_path / 'r', seeds=1, steps=2, batch=4, rank=4, sentences=8).items()
        for x in ('-p', k, str(v))
    ]
    r = subprocess.run(
        [
            sys.executable,
            '-m',
            'papermill',
            str(ROOT / 'nbs/22_retention.ipynb'),
            '-',
            *args,
            '-y',
            '{arms: [LoRA, rehearsal], scales: [0, 1], sequence: []}',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr[-3000:]
    report = json.loads((tmp_path / 'r/report.json').read_text())
    assert (
        set(report['verdicts']) == {'rehearsal'}
        and report['verdicts']['rehearsal'].startswith('one seed')
        and (tmp_path / 'r/figures/retention.png').exists()
        and report['table']['LoRA x 0']['drift']['value'] == 0
    )
