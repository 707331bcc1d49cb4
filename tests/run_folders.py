"""Run folders for tests of pages: committed reports, with clips of the corpus for their sounds"""
import json
from pathlib import Path

import numpy as np, soundfile as sf, yaml

from csm_expressive_nb.core.config import EmotionConfig, make_config
from csm_expressive_nb.core.files import read_json, write_json
from csm_expressive_nb.data.dataset import open_dataset

ROOT = Path(__file__).parents[1]
HOSTILE = '<img src=x onerror="alert(1)">'
SAMPLE_RATE = 24_000

def write_samples(folder: Path, emotion: str, report: dict, sounds: list):
    "Recordings in place of the report's samples, with hostile sentences"
    (folder / 'samples').mkdir()
    for i, sample in enumerate(report['samples']):
        sample['text'] = f'{HOSTILE} {i}'
        sf.write(folder / sample['reference']['file'], sounds[i] * 0.5, SAMPLE_RATE)
        sf.write(folder / sample['base']['file'], sounds[i] * 0.5, SAMPLE_RATE)
        sf.write(folder / sample[emotion]['file'], sounds[i], SAMPLE_RATE)
    write_json(folder / 'report.json', report)
    write_json(folder / 'ended.json', dict(best_update=None))

def write_evaluation(folder: Path, emotion: str, n_clips: int, sounds: list):
    "Clips of an evaluation: of every sentence one by the adapter and one by the base"
    (folder / 'evaluation/audio').mkdir(parents=True)
    rows = ['file,system,emotion,text,voice,seed']
    for i in range(n_clips):
        file = f'audio/{i:04}.flac'
        sf.write(folder / 'evaluation' / file, np.roll(sounds[i % 20], i), SAMPLE_RATE)
        sentence = i // 2
        system, of_emotion = ('base', '') if i % 2 else ('adapter', emotion)
        rows.append(f'{file},{system},{of_emotion},Sentence {sentence}.,{sentence % 4},0')
    (folder / 'evaluation/clips.csv').write_text('\n'.join(rows) + '\n')

def estimate(value: float) -> dict:
    return dict(value=value, low=value - 0.1, high=value + 0.1, n=4)

def write_intensity(folder: Path, emotion: str, sounds: list):
    "One sentence at two scales of the adapter, and what was measured at them"
    (folder / 'intensity/audio').mkdir(parents=True)
    scales, clips = [0.0, 1.0], []
    for i, scale in enumerate(scales):
        file = f'audio/{i}.flac'
        sf.write(folder / 'intensity' / file, sounds[i], SAMPLE_RATE)
        clips.append(dict(file=file, emotion=emotion, scale=scale, text='The dial.', voice='1', ended=True))
    judged = dict(label='target-emotion accuracy', at=[estimate(0.1), estimate(0.9)])
    response = dict(scales=scales, rises=estimate(0.8), values=dict(judged=judged))
    write_json(folder / 'intensity.json', dict(scales=scales, clips=clips, emotions={emotion: response}))

def write_metrics(folder: Path):
    "The log of twenty steps"
    lines = [
        dict(
            step=i,
            loss=6 - i / 10,
            c0=2 - i / 20,
            depth=4.0,
            codebooks=[2.0 - i / 20, 4.0, 3.0],
            lr=1e-3,
            grad_norm=1.0,
        )
        for i in range(20)
    ]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))

def run_folder(folder: Path, emotion: str, n_clips: int) -> Path:
    "A run folder around a committed report, with recordings of the corpus for its sound"
    report = read_json(ROOT / f'nbs/results/{emotion}.json')
    folder.mkdir()
    settings = make_config(EmotionConfig, **report['config'] | dict(out='')).model_dump()
    (folder / 'config.yaml').write_text(yaml.safe_dump(settings))
    ds = open_dataset()
    sounds = [ds.audio(clip)[:12_000] for clip in ds.select(emotion=emotion)[:20]]
    write_samples(folder, emotion, report, sounds)
    write_evaluation(folder, emotion, n_clips, sounds)
    write_intensity(folder, emotion, sounds)
    write_metrics(folder)
    return folder
