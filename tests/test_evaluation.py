"""What the chapters on evaluation cannot show of themselves: nothing limited is imported, every metric is
held to something, the shipped judge is independent."""
import json, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / 'shared' / 'data'

@pytest.mark.slow
def test_no_limited_package_is_imported_by_default():
    code = (
        'import sys; from csm_expressive_nb import cli; from csm_expressive_nb.pipelines import evaluate; '
        'from csm_expressive_nb.report import evaluation_page; from csm_expressive_nb.evaluation import '
        'listening, pretrained, robustness, summary; '
        "print([m for m in ('parselmouth', 'opensmile', 'funasr', 'utmosv2', 'espeakng_loader') "
        'if m in sys.modules])'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip().splitlines()[-1] == '[]'

def test_every_metric_is_declared_and_held_to_something():
    from csm_expressive_nb.evaluation import judge, pretrained
    from csm_expressive_nb.evaluation.measurement import METRICS, registry
    from csm_expressive_nb.evaluation.robustness import EXPECTATIONS
    columns = dict(
        prosody={'f0', 'energy', 'rate', 'pauses'}, vad={'speech', 'trailing'}, judge={'arousal_cremad'}
    )
    counted = {'stopped', 'rtf'}
    for name, metric in METRICS.items():
        assert metric.licence and metric.validated and metric.unit, name
        assert metric.better in ('higher', 'lower', 'target', '') and metric.low < metric.high, name
        tested = columns.get(name, {name}) <= set(EXPECTATIONS)
        assert tested or name in counted or not metric.default, (
            f'{name} has no expectation under damage in the robustness chapter'
        )
        if any(limit in metric.licence for limit in ('GPL', 'non-commercial', 'NC-SA')):
            assert not metric.default, f'{name} is limited and on by default'
        assert bool(metric.packages) == bool(metric.extra or metric.install), f'{name}: who installs it?'
    assert len(registry()) == len(METRICS) >= 16

def test_asked_for_and_missing_is_an_error_never_a_number():
    from csm_expressive_nb.evaluation import judge, pretrained
    from csm_expressive_nb.evaluation.measurement import (
        METRICS, Unavailable, Utterance, load, measure, status,
    )
    import numpy as np
    # nothing of the hub is in a fresh cache
    missing = [name for name in METRICS if status(name) != 'available']
    assert missing
    for name in missing:
        with pytest.raises(Unavailable, match=name): load(name)
        with pytest.raises(Unavailable, match=name):
            measure([Utterance(np.zeros(24_000, np.float32), 'a')], {name: {}}, jobs=1, show=False)

def test_the_shipped_judge_shares_nothing_with_what_adapters_learn_from():
    from csm_expressive_nb.data.dataset import open_dataset
    from csm_expressive_nb.evaluation.judge import load_judge, require_independent
    judge = load_judge()
    assert {speaker.split('/')[0] for speaker in judge.trained['speakers']} == {'cremad'}
    assert require_independent(judge, open_dataset().clips) is judge
    for card in judge.cards.values():
        assert card['uar_interval']['low'] <= card['uar'] <= card['uar_interval']['high']
        assert 0 < card['chance'] < 1 and card['count']

@pytest.mark.slow
@pytest.mark.skipif(not (DATA/'ravdess').is_dir(), reason='the real recordings (shared/data) are not here')
def test_real_recordings_on_disk_are_evaluated_from_the_command_line(tmp_path):
    out = tmp_path / 'e'
    options = f'--metrics prosody,judge --recordings 6 --jobs 1 --out {out}'.split()
    main = 'from csm_expressive_nb.cli import main; main()'
    command = [sys.executable, '-c', main, 'evaluate', str(DATA / 'ravdess'), *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    values = json.loads((out / 'evaluation.json').read_text())['values']
    arousal = {e: values[e]['recordings']['arousal_cremad']['value'] for e in ('angry', 'neutral')}
    assert arousal['angry'] > arousal['neutral'] + 1
    assert 'classifier performance on held-out speakers' in result.stdout
