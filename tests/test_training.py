"""What needs a process of its own: torchrun through the command line, notebook_launcher, FSDP, and the
promise that every setting is read."""
import json, os, subprocess, sys
from pathlib import Path

import pytest, torch

ROOT = Path(__file__).parents[1]
ENV = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
SETUP = '''
import sys, torch; torch.set_num_threads(1)
from csm_expressive_nb.core import *; from csm_expressive_nb.model import *; from csm_expressive_nb.batches import *; from csm_expressive_nb.continual import *; from csm_expressive_nb.training import *
cfg = TrainConfig(steps=4, batch=4, dropout=0., tokens=300, lr=3e-3, trackers=[], validate_every=2, monitor='loss', patience=1)
m, processor = load_csm(); old = neutral_items(processor); target = [Item(x.ids, x.variants) for x in old[:8]]
'''

def python(code: str, *args, launcher=()):
    r = subprocess.run(
        [sys.executable, *launcher, *(['-c', code] if not launcher else [code]), *map(str, args)],
        capture_output=True,
        text=True,
        env=ENV,
        cwd=ROOT,
        timeout=240,
    )
    assert r.returncode == 0, r.stderr[-3000:]
    return r.stdout

def curve(run: Path, key='loss'):
    return [x[key] for x in map(json.loads, (run / 'metrics.jsonl').read_text().splitlines()) if key in x]

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    d = tmp_path_factory.mktemp('alone')
    python(SETUP + "train(m, cfg, Run(sys.argv[1], cfg), target, old[20:40], old[40:44], show=False)", d)
    return d

@pytest.mark.slow
def test_a_notebook_can_launch_two_processes(alone, tmp_path):
    code = (
        'from accelerate import notebook_launcher\ndef job(out):\n'
        + ''.join(
            f'    {l}\n'
            for l in SETUP.replace('import *', 'import *').splitlines()
            if l and not l.startswith(('from', 'import'))
        )
        + "    train(m, cfg, Run(out, cfg), target, old[20:40], old[40:44], show=False)\n"
    )
    code = (
        '\n'.join(l for l in SETUP.splitlines() if l.startswith(('from', 'import')))
        + '\n'
        + code
        + "if __name__ == '__main__': import socket; s = socket.socket(); s.bind(('', 0)); port = "
        "s.getsockname()[1]; s.close(); notebook_launcher(job, (sys.argv[1],), num_processes=2, "
        "use_port=str(port))\n"
    )
    (f := tmp_path / 'nb.py').write_text(code)
    python(str(f), tmp_path / 'two', launcher=('-u',))
    a, b = curve(alone), curve(tmp_path / 'two')
    assert (
        len(a) == len(b)
        and max(abs(x - y) for x, y in zip(a, b)) < 2e-3
        and (tmp_path / 'two/adapter/adapter_model.safetensors').exists()
    )
    assert (
        json.loads((tmp_path / 'two/ended.json').read_text())['best_update']
        == json.loads((alone / 'ended.json').read_text())['best_update']
    )

SHARD = SETUP + '''
from pathlib import Path; from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
acc = Accelerator(cpu=True); mesh = init_device_mesh('cpu', (acc.num_processes,)); m = prepare_model(m, cfg); obj = Objective(m, cfg)
[fully_shard(l, mesh=mesh) for l in m.modules() if type(l).__name__ == 'CsmDecoderLayer']; fully_shard(obj, mesh=mesh); opt = optimizer(m, cfg); s = sampler_of(cfg, target, old[20:40], {})
assert all(type(p).__name__ == 'DTensor' for p in trainable(m).values())
loss = [update(obj, opt, s.update(i), cfg, acc, i)[0]['loss'] for i in range(4)]; v = validate(obj, old[40:44], cfg, acc)['loss']; state = state_of(m, opt, s, {}); f = Path(sys.argv[1])
if acc.is_main_process: save_checkpoint(f, 4, state)
acc.wait_for_everyone(); before = [whole_tensor(p.detach()).clone() for p in trainable(m).values()]
with torch.no_grad(): [p.zero_() for p in trainable(m).values()]
load_checkpoint(newest_checkpoint(f), m, opt, s); assert all(a.equal(whole_tensor(p.detach())) for a, p in zip(before, trainable(m).values()))
if acc.is_main_process: print('losses', [*loss, v], flush=True)
acc.wait_for_everyone(); acc.end_training()
'''

@pytest.mark.slow
def test_sharded_weights_give_the_same_losses_and_checkpoints(alone, tmp_path):
    """FSDP2 on two CPU processes; accelerate switches it on for GPUs only, so torch's own `fully_shard`
    wraps our objective"""
    (f := tmp_path / 'shard.py').write_text(SHARD)
    out = python(
        str(f),
        tmp_path / 'ck',
        launcher=('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2'),
    )
    loss = json.loads(out.split('losses')[1].strip().splitlines()[0])
    want = [*curve(alone), curve(alone, 'validation_loss')[-1]]
    assert len(loss) == len(want) and max(abs(x - y) for x, y in zip(loss, want)) < 2e-3

@pytest.mark.slow
def test_finetune_on_two_processes_writes_one_report(tmp_path, few_clips):
    from csm_expressive_nb import expressive, road
    from csm_expressive_nb.core import ExpressiveConfig
    from csm_expressive_nb.model import load_csm
    kw = dict(
        source=few_clips,
        emotions=['sad', 'angry'],
        sentences=4,
        batch=4,
        monitor='',
        trackers=[],
        dropout=0.0,
        sample_every=0,
        validate_every=2,
        steps=2,
    )
    r = subprocess.run(
        [
            sys.executable,
            '-m',
            'csm_expressive_nb.cli',
            'finetune',
            '--out',
            str(tmp_path / '2'),
            '--gpus',
            '2',
            *[x for k, v in kw.items() for x in ('--set', f'{k}={json.dumps(v)}')],
        ],
        capture_output=True,
        text=True,
        env=ENV,
        cwd=ROOT,
        timeout=300,
    )
    assert r.returncode == 0, r.stderr[-3000:]
    torch.set_num_threads(1)
    cfg = ExpressiveConfig(out=str(tmp_path / '1'), **kw)
    run, tags = expressive.open_expressive(cfg), expressive.tags_of(cfg)
    model, processor = load_csm()
    road.fit(cfg, run, model, processor, road.prepare(cfg, run, model, processor, tags), tags, show=False)
    assert (
        r.stdout.count('report:') == 1
        and set(json.loads((tmp_path / '2/report.json').read_text())['emotions']) == {'sad', 'angry'}
        and max(abs(x - y) for x, y in zip(curve(tmp_path / '1'), curve(tmp_path / '2'), strict=True)) < 2e-3
    )

@pytest.mark.slow
def test_every_setting_is_read(tmp_path, short_speech, few_clips):
    "A run that never looks at a setting would train something other than what was asked for"
    from csm_expressive_nb import expressive, road
    from csm_expressive_nb.core import EmotionConfig, ExpressiveConfig
    torch.set_num_threads(1)
    read = set()
    for cls, go in ((EmotionConfig, road.emotion_run), (ExpressiveConfig, expressive.finetune)):
        class Spy(cls):
            def __getattribute__(self, name):
                read.add(name)
                return super().__getattribute__(name)

        extra = (
            dict(emotions=['sad', 'angry'], sentences=4, sequential=True)
            if cls is ExpressiveConfig
            else dict(emotion='sad', sentences=8)
        )
        cfg = Spy(
            source=few_clips,
            buffer=24,
            steps=2,
            batch=3,
            validate_every=2,
            monitor='loss',
            patience=1,
            sample_every=1,
            rehearsal=0.2,
            distillation=0.1,
            context=0.5,
            ewc=1.0,
            ewc_clips=4,
            ewc_pilot=1,
            trackers=[],
            out=str(tmp_path / cls.__name__),
            **extra,
        )
        read.clear()
        go(cfg, show=False)
        assert not (missing := set(cls.model_fields) - read), f'{cls.__name__}: never read: {sorted(missing)}'
