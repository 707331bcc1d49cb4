"""Capability preservation across emotions: the base stays whole, the order does not matter, adapters swap
and mix, runs go on, own emotions work."""
import csv, json, shutil, subprocess, sys
from pathlib import Path

import pytest, soundfile as sf

from csm_expressive_nb import cli
from csm_expressive_nb.pipelines import emotion, preparation
from csm_expressive_nb.core.config import EmotionConfig, ExpressiveConfig, make_config
from csm_expressive_nb.core.run import Run
from csm_expressive_nb.training.rehearsal import evaluation_sentences
from csm_expressive_nb.data.dataset import open_dataset
from csm_expressive_nb.training.ewc import adapter_changes
from csm_expressive_nb.training.fisher import lora_factors, target_matrices
from csm_expressive_nb.model.csm import load_csm
from csm_expressive_nb.model.lora import load_adapter, load_base, merge_adapter, weights_hash
from csm_expressive_nb.speech.generation import speak

ROOT = Path(__file__).parents[1]
SMALL = dict(
    steps=3,
    batch=4,
    rank=4,
    sentences=8,
    strength_sentences=0,
    trackers=[],
    validate_every=0,
    ewc_clips=8,
    buffer=24,
    depth_rank=4,
)

def adapter_bytes(folder) -> bytes:
    return (Path(folder) / 'adapter/adapter_model.safetensors').read_bytes()

def read(path) -> dict:
    return json.loads(Path(path).read_text())

def fit_emotion(model, processor, folder, **settings):
    cfg = make_config(EmotionConfig, out=str(folder), **SMALL | settings)
    run = preparation.open_run(cfg)
    data = preparation.prepare_data(cfg, run, model, processor)
    return emotion.fit(cfg, run, model, processor, data, show=False)

@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    "Three emotions one after another on one base in one process, each with another retention term"
    folder = tmp_path_factory.mktemp('chain')
    model, processor = load_csm()
    hashes = [weights_hash(model)]
    stages = dict(
        happy=dict(ewc=1.0),
        sad=dict(distillation=0.5, distillation_cache=8),
        neutral=dict(rehearsal=0.0, distillation=0.0, ewc=1.0, ewc_fisher='factor'),
    )
    for emotion, settings in stages.items():
        lora = fit_emotion(model, processor, folder / emotion, emotion=emotion, **settings)
        model = lora.unload()
        hashes.append(weights_hash(model))
    return folder, hashes

@pytest.mark.slow
def test_the_base_is_untouched_and_the_order_does_not_matter(chain, tmp_path):
    folder, hashes = chain
    assert len(hashes) == 4 and set(hashes) == {weights_hash(load_csm()[0])}
    # sad alone, first
    fit_emotion(*load_csm(), tmp_path / 'sad', emotion='sad', distillation=0.5, distillation_cache=8)
    assert adapter_bytes(tmp_path / 'sad') == adapter_bytes(folder / 'sad')
    last_row = (folder / 'happy/metrics.jsonl').read_text().splitlines()[-1]
    assert 'ewc' in json.loads(last_row)
    assert read(folder / 'happy/ewc.json')['fisher']['split_half'] > 0

@pytest.mark.slow
def test_adapters_hot_swap_with_equal_output(chain):
    folder, _ = chain
    texts = evaluation_sentences()[:2]

    def codes_of(model, processor):
        return [speech.codes.tolist() for speech in speak(model, processor, texts, tag='~', desc='')]

    single = {}
    for emotion in ('happy', 'sad'):
        model, processor = load_csm()
        single[emotion] = codes_of(load_adapter(model, folder / emotion / 'adapter'), processor)
    model, processor = load_csm()
    both = load_adapter(model, folder / 'happy/adapter')
    both.load_adapter(str(folder / 'sad/adapter'), 'sad')
    for name, emotion in (('default', 'happy'), ('sad', 'sad'), ('default', 'happy')):
        both.set_adapter(name)
        assert codes_of(both.eval(), processor) == single[emotion]
    with both.disable_adapter(): off = codes_of(both, processor)
    assert off == codes_of(*load_csm())
    assert single['happy'] != single['sad']

@pytest.mark.slow
def test_cat_is_the_sum_of_deltas_and_linear_is_not(chain):
    folder, _ = chain
    model, _ = load_csm()
    both = load_adapter(model, folder / 'happy/adapter')
    both.load_adapter(str(folder / 'sad/adapter'), 'sad')
    both.add_weighted_adapter(['default', 'sad'], [0.5, 0.5], 'cat', combination_type='cat')
    both.add_weighted_adapter(['default', 'sad'], [0.5, 0.5], 'linear', combination_type='linear')

    def delta(matrix, adapter):
        scale, A, B = lora_factors(matrix, adapter)
        return scale * B @ A

    def worst_difference(combined):
        differences = []
        for matrix in target_matrices(both).values():
            mean = (delta(matrix, 'default') + delta(matrix, 'sad')) / 2
            difference = (delta(matrix, combined) - mean).norm() / delta(matrix, 'default').norm()
            differences.append(float(difference))
        return max(differences)

    assert worst_difference('cat') < 1e-5
    assert worst_difference('linear') > 0.05

@pytest.mark.slow
@pytest.mark.parametrize(
    'settings',
    [dict(ewc=1.0, distillation=0.5), dict(ewc=2.0, ewc_fisher='ones', rehearsal=0.0, distillation=0.0)],
    ids=['ewc and distillation', 'L2'],
)
def test_a_resumed_run_ends_with_the_same_bytes(settings, tmp_path):
    settings = settings | dict(emotion='angry', steps=6, checkpoint_every=3)
    undisturbed, interrupted = tmp_path / 'undisturbed', tmp_path / 'interrupted'
    fit_emotion(*load_csm(), undisturbed, **settings)
    shutil.copytree(undisturbed, interrupted)
    shutil.rmtree(interrupted / 'adapter')
    (last,) = interrupted.glob('checkpoints/00000006-*')
    last.unlink()
    fit_emotion(*load_csm(), interrupted, **settings)
    assert adapter_bytes(interrupted) == adapter_bytes(undisturbed)
    assert (interrupted / 'metrics.jsonl').read_bytes() == (undisturbed / 'metrics.jsonl').read_bytes()

@pytest.mark.slow
def test_an_emotion_starts_from_a_general_run(tmp_path):
    cfg = ExpressiveConfig(
        out=str(tmp_path / 'general'),
        emotions=['sad', 'angry'],
        steps=3,
        batch=4,
        rank=4,
        depth_rank=4,
        trackers=[],
        validate_every=0,
        monitor='',
        sample_every=0,
    )
    run = preparation.open_run(cfg)
    model, processor = load_csm()
    data = preparation.prepare_data(cfg, run, model, processor)
    general = emotion.fit(cfg, run, model, processor, data, show=False)
    changes = adapter_changes(general)
    lora = fit_emotion(
        *load_base(make_config(emotion='sad', base=str(tmp_path / 'general'))),
        tmp_path / 'sad',
        emotion='sad',
        base=str(tmp_path / 'general'),
    )
    # base of the emotion = base + delta of the general run
    plain = target_matrices(load_csm()[0])
    for name, matrix in target_matrices(lora).items():
        left, right = changes[name]
        expected = plain[name].weight + left @ right
        assert float((matrix.base_layer.weight - expected).detach().abs().max()) < 1e-6
    (merged_folder,) = map(str, (tmp_path / 'general/merged').iterdir())
    assert weights_hash(load_csm(merged_folder)[0]) == weights_hash(lora)
    assert load_adapter(load_csm(merged_folder)[0], tmp_path / 'sad/adapter')
    with pytest.raises(ValueError, match='set `model` to nano'):
        merge_adapter(tmp_path / 'general', 'csm-1b')
    with pytest.raises(FileNotFoundError, match='finished multi-emotion adapter'):
        merge_adapter(tmp_path / 'nothing')

def own_voice(folder: Path) -> Path:
    "A folder of 'recordings' with an emotion that no corpus knows"
    dataset, rows = open_dataset(), []
    (folder / 'wav').mkdir(parents=True)
    for clip in dataset.clips:
        if clip.emotion not in ('neutral', 'surprised') or int(clip.speaker) > 12: continue
        file = f'wav/{clip.id.replace("/", "_")}.wav'
        sf.write(folder / file, dataset.audio(clip), 24_000, subtype='FLOAT')
        emotion = 'pirate' if clip.emotion == 'surprised' else 'neutral'
        rows.append(dict(file=file, text=clip.text, emotion=emotion, speaker=clip.speaker, sex=clip.sex))
    with open(folder / 'metadata.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder

def papermill(notebook: str, settings: dict, *more: str):
    "Run a report's notebook with these parameters"
    parameters = []
    for name, value in settings.items(): parameters += ['-p', name, str(value)]
    command = [sys.executable, '-m', 'papermill', str(ROOT / 'nbs' / notebook), '-', *parameters, *more]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]

@pytest.mark.slow
def test_an_emotion_of_ones_own_needs_no_code_and_one_failure_loses_nothing(tmp_path, short_speech):
    source = own_voice(tmp_path / 'mine')
    command = ['prepare', 'folder', '--source', source, '--out', tmp_path / 'ds', '--own', 'pirate']
    assert not cli.app([str(word) for word in command], standalone_mode=False)
    cfg = make_config(EmotionConfig, source=str(tmp_path / 'ds'), emotion='pirate', **SMALL)
    done = emotion.emotions_run(cfg, ['pirat', 'pirate'], tmp_path / 'out', show=False)
    assert done['pirate'] == 'done'
    assert done['pirat'].startswith('failed')
    assert "did you mean 'pirate'? It has neutral, pirate" in done['pirat']
    assert not (tmp_path / 'out/pirat').exists()
    folder = tmp_path / 'out/pirate'
    assert read(folder / 'report.json')['judge']['emotions'] == ['neutral', 'pirate']
    assert (folder / 'samples/0_pirate.wav').exists() and (folder / 'index.html').exists()
    before = (folder / 'report.json').stat().st_mtime_ns
    done = emotion.emotions_run(cfg, ['pirate'], tmp_path / 'out', show=False)
    assert done == dict(pirate='finished before')
    assert (folder / 'report.json').stat().st_mtime_ns == before
    # the raw folder, too
    cfg = make_config(EmotionConfig, source=str(source), emotion='pirate', out=str(tmp_path / 'raw'))
    run = Run(tmp_path / 'raw', cfg)
    assert preparation.prepare_data(cfg, run, *load_csm()).target
    with pytest.raises(ValueError, match='unknown_emotion'):
        preparation.prepare_data(cfg.model_copy(update=dict(emotion='pirat')), run, *load_csm())

@pytest.mark.long
def test_neutral_is_an_emotion_like_the_others(tmp_path):
    """Through papermill and in this process: the same report, byte for byte; no share of a shift that is
    not there"""
    unused = 'trackers', 'validate_every', 'depth_rank'
    settings = {name: value for name, value in SMALL.items() if name not in unused}
    settings |= dict(emotion='neutral', ewc=1.0)
    papermill('20_emotion.ipynb', settings | dict(out=tmp_path / 'a'))
    emotion.emotion_run(make_config(EmotionConfig, out=str(tmp_path / 'b'), **settings), show=False)
    assert (tmp_path / 'a/report.json').read_bytes() == (tmp_path / 'b/report.json').read_bytes()
    gaps = read(tmp_path / 'a/report.json')['prosody_shift'].values()
    assert all(gap['transfer_ratio']['value'] is None for gap in gaps)

@pytest.mark.long
def test_the_comparison_runs_as_a_notebook(tmp_path):
    settings = dict(out=tmp_path / 'r', seeds=1, steps=2, batch=4, rank=4, sentences=8)
    arms = '{arms: [LoRA, rehearsal], scales: [0, 1], sequence: [], prediction_steps: [1]}'
    papermill('22_retention.ipynb', settings | dict(own_speech_steps=0), '-y', arms)
    report = read(tmp_path / 'r/report.json')
    assert set(report['verdicts']) == {'rehearsal'}
    assert report['verdicts']['rehearsal'].startswith('one seed')
    assert (tmp_path / 'r/figures/retention.svg').exists()
    assert report['table']['LoRA x 0']['drift']['value'] == 0
