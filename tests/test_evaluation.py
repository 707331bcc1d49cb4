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
        "import sys; from csm_expressive_nb import cli, hub, listening, protocol, sanity; print([m for m "
        "in ('parselmouth', 'opensmile', 'funasr', 'utmosv2', 'espeakng_loader') if m in sys.modules])"
    )
    r = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    assert r.stdout.strip().splitlines()[-1] == '[]'

def test_every_metric_is_declared_and_held_to_something():
    from csm_expressive_nb import hub, judge
    from csm_expressive_nb.metrics import METRICS, registry
    from csm_expressive_nb.sanity import MUST
    columns = dict(
        prosody={'f0', 'energy', 'rate', 'pauses'}, vad={'speech', 'trailing'}, judge={'arousal_cremad'}
    )
    counted = {'stopped', 'rtf'}
    for name, m in METRICS.items():
        assert (
            m.licence
            and m.validated
            and m.unit
            and m.better in ('higher', 'lower', 'target', '')
            and m.low < m.high
        ), name
        assert columns.get(name, {name}) <= set(MUST) or name in counted or not m.default, (
            f'{name} has no expectation under damage in 12a_sanity'
        )
        if any(w in m.licence for w in ('GPL', 'non-commercial', 'NC-SA')):
            assert not m.default, f'{name} is limited and on by default'
    assert len(registry()) == len(METRICS) >= 16

def test_asked_for_and_missing_is_an_error_never_a_number():
    from csm_expressive_nb import hub
    from csm_expressive_nb.metrics import METRICS, Unavailable, Utterance, load, measure, status
    import numpy as np
    # nothing of the hub is in a fresh cache
    away = [k for k in METRICS if status(k) != 'available']
    assert away
    for k in away:
        with pytest.raises(Unavailable, match=k): load(k)
        with pytest.raises(Unavailable, match=k):
            measure([Utterance(np.zeros(24_000, np.float32), 'a')], {k: {}}, jobs=1, show=False)

def test_the_shipped_judge_shares_nothing_with_what_adapters_learn_from():
    from csm_expressive_nb.dataset import dataset_of
    from csm_expressive_nb.judge import independent, shipped
    j = shipped()
    assert {s.split('/')[0] for s in j.trained['speakers']} == {'cremad'} and independent(
        j, dataset_of().clips
    ) is j
    for c in j.cards.values():
        assert (
            c['uar_interval']['low'] <= c['uar'] <= c['uar_interval']['high']
            and 0 < c['chance'] < 1
            and c['count']
        )

@pytest.mark.slow
@pytest.mark.skipif(not (DATA/'ravdess').is_dir(), reason='the real recordings (shared/data) are not here')
def test_real_recordings_on_disk_are_evaluated_from_the_command_line(tmp_path):
    r = subprocess.run(
        [
            sys.executable,
            '-c',
            'from csm_expressive_nb.cli import main; main()',
            'evaluate',
            str(DATA / 'ravdess'),
            '--metrics',
            'prosody,judge',
            '--recordings',
            '6',
            '--jobs',
            '1',
            '--out',
            str(tmp_path / 'e'),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr[-2000:]
    v = json.loads((tmp_path / 'e/evaluation.json').read_text())['values']
    assert (
        v['angry']['recordings']['arousal_cremad']['value']
        > v['neutral']['recordings']['arousal_cremad']['value'] + 1
        and 'own error' in r.stdout
    )
