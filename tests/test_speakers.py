"Voices are reference turns: what is measured is spoken after one, and nothing is said of a voice without"
from collections import Counter
from pathlib import Path

import numpy as np, pytest, soundfile as sf, torch

from csm_expressive_nb.core.config import ExpressiveConfig, RetentionConfig, make_config
from csm_expressive_nb.data import dataset
from csm_expressive_nb.model.csm import load_csm, tiny_csm
from csm_expressive_nb.nano import corpus
from csm_expressive_nb.speech import generation
from csm_expressive_nb.pipelines import (
    dose_response, emotion, evaluate, expressive, preparation, retention,
)

DATA = Path(__file__).parents[2] / 'shared/data'
SETTINGS = dict(
    steps=1,
    batch=2,
    rank=4,
    sentences=8,
    strength_sentences=2,
    sample_every=1,
    validate_every=0,
    trackers=[],
    ewc_clips=4,
)

@pytest.fixture
def prompts(monkeypatch):
    "For every sentence that is spoken, how many turns with sound went before it"
    calls, embed = [], generation.embed_conversation

    def record(model, context, ids):
        calls.append(sum(len(turn.codes) > 0 for turn in context))
        return embed(model, context, ids)

    monkeypatch.setattr(generation, 'embed_conversation', record)
    return calls

def speak_everywhere(model: str, source: str, folder: Path):
    "Report, sampling, general stage, evaluation, intensity, own speech and retention, as small as they go"
    settings = SETTINGS | dict(model=model, source=source)
    cfg = make_config(emotion='sad', out=str(folder / 'sad'), **settings)
    run, _ = emotion.emotion_run(cfg, show=False)
    options = dict(emotions=['sad', 'angry'], monitor='', out=str(folder / 'all'))
    general = make_config(ExpressiveConfig, **options, **settings)
    expressive.finetune(general, show=False)
    protocol = evaluate.Protocol(sentences=4, seeds=1, recordings=2, metrics=['stopped'])
    evaluate.evaluate(run.path, protocol=protocol, jobs=1, show=False)
    dose_response.measure_intensity(run.path, [0.0, 1.0], 2, False)
    arms = dict(arms=['LoRA', 'rehearsal of own speech'], scales=[0.0, 1.0], seeds=1, sequence=[])
    small = make_config(RetentionConfig, emotion='sad', out=str(folder / 'arms'), **settings, **arms)
    try:
        retention.run_arms(small, show=False)
    except ValueError as error:
        assert 'none of' in str(error)          # random weights never stop: there is nothing to rehearse

@pytest.mark.slow
def test_every_spoken_set_follows_a_reference_turn(tmp_path, short_speech, few_clips, prompts):
    model = str(tiny_csm(tmp_path / 'csm'))
    speak_everywhere(model, few_clips, tmp_path)
    assert len(prompts) > 100
    assert set(prompts) == {1}, Counter(prompts)

@pytest.mark.slow
def test_that_test_sees_a_missing_turn(tmp_path, short_speech, few_clips, prompts, monkeypatch):
    "The mutation: sampling while training forgets its reference turns"
    speak = emotion.speak
    monkeypatch.setattr(emotion, 'speak', lambda *args, **kwargs: speak(*args[:3], None, *args[4:], **kwargs))
    model, processor = load_csm(str(tiny_csm(tmp_path / 'csm')))
    cfg = make_config(emotion='sad', source=few_clips, out=str(tmp_path / 'run'), **SETTINGS)
    run = preparation.open_run(cfg)
    data = preparation.prepare_data(cfg, run, *load_csm())
    emotion.sampling_callback(cfg, run, processor, data, n=1)(model, 0)
    assert prompts == [0]

def write_tone(file: Path, seconds: float, hertz: float, rate: int = 16_000):
    "A pulsating tone with a little noise: it has F0 and level, and no words"
    time = np.arange(int(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * hertz * time) * (np.sin(6 * time) > -0.5)
    noise = 1e-3 * np.random.default_rng(int(hertz)).standard_normal(len(time))
    sf.write(file, 0.2 * tone + noise, rate, subtype='PCM_16')

def cremad_corpus(folder: Path, actors: range) -> Path:
    "Synthetic speech, and tones for disgust, in CREMA-D's layout with its tables"
    corpus.write_cremad(folder, tuple(actors), processes=1)
    for i, file in enumerate(sorted(folder.glob('AudioWAV/*_DIS_*'))):
        write_tone(file, 2.0, 120 + i)
    sexes = 'Male', 'Female'
    people = [f'{actor},{20 + actor % 50},{sexes[actor % 2]},Unknown,Unknown' for actor in actors]
    table = folder / 'VideoDemographics.csv'
    table.write_text('\n'.join(['ActorID,Age,Sex,Race,Ethnicity', *people]) + '\n')
    rows = ['"",A,D,F,H,N,S,fileName,emoVote']
    for i, file in enumerate(sorted(folder.glob('AudioWAV/*.wav'))):
        letter = file.stem.split('_')[2][0]
        counts = ','.join('9' if letter == column else '0' for column in 'ADFHNS')
        rows.append(f'{100001 + i},{counts},{file.stem},{letter}')
    (folder / 'processedResults').mkdir()
    (folder / 'processedResults/tabulatedVotes.csv').write_text('\n'.join(rows) + '\n')
    return folder

@pytest.fixture(scope='module')
def cremad_dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('cremad')
    source = cremad_corpus(folder / 'source', range(1001, 1007))
    prepared = dataset.prepare(source, folder / 'ds', verify='off', shares=(0.34, 0.33, 0.33))
    return prepared.folder

@pytest.mark.slow
def test_a_corpus_in_cremads_layout_runs_whole(tmp_path, cremad_dataset, short_speech):
    cfg = make_config(emotion='angry', source=str(cremad_dataset), out=str(tmp_path / 'run'), **SETTINGS)
    run, report = emotion.emotion_run(cfg, show=False)
    assert (run.path / 'index.html').exists() and len(report['voices']) == 2
    assert report['clips']['without_reference'] == 0
    protocol = evaluate.Protocol(sentences=4, seeds=1, recordings=2)
    assert evaluate.evaluate(run.path, protocol=protocol, jobs=1, show=False)['values']['angry']['adapter']

@pytest.mark.slow
@pytest.mark.parametrize('n_neutral', [0, 1])
def test_a_corpus_without_two_neutral_clips_is_refused_with_its_counts(tmp_path, n_neutral):
    (tmp_path / 'own').mkdir()
    rows = ['file,text,emotion,speaker']
    for speaker in range(8):
        for i, name in enumerate(['sad', 'sad', 'angry', *['neutral'] * n_neutral]):
            rows.append(f'{speaker}_{i}.wav,Sentence number {speaker} {i}.,{name},person {speaker}')
            write_tone(tmp_path / f'own/{speaker}_{i}.wav', 2.0, 100 + 10 * speaker + i)
    (tmp_path / 'own/metadata.csv').write_text('\n'.join(rows))
    cfg = make_config(emotion='sad', source=str(tmp_path / 'own'), out=str(tmp_path / 'run'), **SETTINGS)
    expected = 'neutral recordings in the training split' if not n_neutral else 'at most 1 each'
    with pytest.raises(ValueError, match=expected):
        preparation.prepare_data(cfg, preparation.open_run(cfg), *load_csm())

@pytest.mark.slow
@pytest.mark.skipif(not (DATA / 'cremad').exists(), reason='needs shared/data/cremad')
def test_the_real_cremad_folder_is_refused_with_its_counts(tmp_path):
    cfg = make_config(emotion='sad', source=str(DATA / 'cremad'), out=str(tmp_path / 'run'), **SETTINGS)
    with pytest.raises(ValueError, match='neutral'):
        preparation.prepare_data(cfg, preparation.open_run(cfg), *load_csm())
