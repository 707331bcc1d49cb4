"""What needs a process of its own: torchrun through the command line, notebook_launcher, FSDP, and the
promise that every setting is read.

`python tests/test_training.py FUNCTION FOLDER` runs one of the functions below: that is what the other
processes do."""
import json, os, socket, subprocess, sys
from pathlib import Path

import pytest, torch

ROOT = Path(__file__).parents[1]
ENV = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))

def python(*args, timeout: int = 240) -> str:
    "Standard output of a Python process"
    process = subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, env=ENV, cwd=ROOT, timeout=timeout
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout

def curve(run: Path, key: str = 'loss') -> list[float]:
    "The values of `key` in the metrics of a run"
    lines = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    return [line[key] for line in lines if key in line]

def assert_close(values: list[float], expected: list[float]):
    assert len(values) == len(expected)
    assert max(abs(value - other) for value, other in zip(values, expected)) < 2e-3

# --- what the processes run

def small_run() -> tuple:
    "Configuration, model, and target, rehearsal and validation examples of four updates"
    from csm_expressive_nb.training.rehearsal import neutral_examples
    from csm_expressive_nb.core.config import TrainConfig
    from csm_expressive_nb.model.csm import load_csm
    from csm_expressive_nb.training.sampler import Example
    torch.set_num_threads(1)
    cfg = TrainConfig(
        steps=4,
        batch=4,
        dropout=0.0,
        tokens=300,
        lr=3e-3,
        trackers=[],
        validate_every=2,
        monitor='loss',
        patience=1,
        context=0.0,
    )
    model, processor = load_csm()
    neutral = neutral_examples(processor)
    target = [Example(example.ids, example.variants) for example in neutral[:8]]
    return cfg, model, target, neutral[20:40], neutral[40:44]

def train_small_run(folder: str):
    from csm_expressive_nb.core.run import Run
    from csm_expressive_nb.training.loop import train
    cfg, model, target, rehearsal, validation = small_run()
    train(model, cfg, Run(folder, cfg), target, rehearsal, validation, show=False)

def launch_from_notebook(folder: str):
    from accelerate import notebook_launcher
    with socket.socket() as s:
        s.bind(('', 0))
        port = s.getsockname()[1]
    notebook_launcher(train_small_run, (folder,), num_processes=2, use_port=str(port))

def shard(objective, mesh):
    "FSDP2: every decoder layer on its own, then the rest"
    from torch.distributed.fsdp import fully_shard
    for layer in objective.modules():
        if type(layer).__name__ == 'CsmDecoderLayer': fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)

def train_sharded(folder: str):
    "The same updates with sharded weights, then a checkpoint and back"
    from accelerate import Accelerator
    from csm_expressive_nb.training.checkpoint import (
        load_checkpoint, newest_checkpoint, save_checkpoint, trainable_state, training_state,
    )
    from csm_expressive_nb.model.lora import prepare_model, trainable_parameters
    from csm_expressive_nb.training.batches import prepare_update
    from csm_expressive_nb.training.optimizer import make_optimizer
    from csm_expressive_nb.training.loop import Objective, make_sampler, update, validate
    from torch.distributed.device_mesh import init_device_mesh
    cfg, model, target, rehearsal, validation = small_run()
    accelerator = Accelerator(cpu=True)
    model = prepare_model(model, cfg)
    objective = Objective(model, cfg)
    shard(objective, init_device_mesh('cpu', (accelerator.num_processes,)))
    optimizer, sampler = make_optimizer(model, cfg, sharded=True), make_sampler(cfg, target, rehearsal, {})
    parameters = trainable_parameters(model).values()
    assert all(type(p).__name__ == 'DTensor' for p in parameters)
    losses = []
    for step in range(4):
        prepared = prepare_update(
            sampler.update(step), cfg, accelerator.num_processes, accelerator.process_index
        )
        values = update(objective, optimizer, prepared, cfg, accelerator, step)
        losses.append(values['loss'])
    losses.append(validate(objective, validation, cfg, accelerator)['loss'])

    state = training_state(model, optimizer, sampler.state(), {})
    if accelerator.is_main_process: save_checkpoint(Path(folder), 4, state)
    accelerator.wait_for_everyone()
    trained = trainable_state(model)
    with torch.no_grad():
        for p in parameters: p.zero_()
    load_checkpoint(newest_checkpoint(Path(folder)), model, optimizer, sampler)
    restored = trainable_state(model)
    assert all(restored[name].equal(tensor) for name, tensor in trained.items())
    if accelerator.is_main_process: print('losses', losses, flush=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()

# --- tests

@pytest.fixture(scope='module')
def alone(tmp_path_factory) -> Path:
    "The run of one process"
    folder = tmp_path_factory.mktemp('alone')
    python(__file__, 'train_small_run', folder)
    return folder

@pytest.mark.slow
def test_a_notebook_can_launch_two_processes(alone, tmp_path):
    python('-u', __file__, 'launch_from_notebook', tmp_path)
    assert_close(curve(tmp_path), curve(alone))
    assert (tmp_path / 'adapter/adapter_model.safetensors').exists()
    ended, expected = [json.loads((run / 'ended.json').read_text()) for run in (tmp_path, alone)]
    assert ended['best_update'] == expected['best_update']

@pytest.mark.slow
def test_sharded_weights_give_the_same_losses_and_checkpoints(alone, tmp_path):
    """FSDP2 on two CPU processes; accelerate switches it on for GPUs only, so torch's own `fully_shard`
    wraps our objective"""
    torchrun = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
    output = python(*torchrun, __file__, 'train_sharded', tmp_path)
    losses = json.loads(output.split('losses')[1].strip().splitlines()[0])
    assert_close(losses, [*curve(alone), curve(alone, 'validation_loss')[-1]])

@pytest.mark.slow
def test_finetune_on_two_processes_writes_one_report(tmp_path, few_clips):
    from csm_expressive_nb.pipelines import emotion, expressive, preparation
    from csm_expressive_nb.core.config import ExpressiveConfig
    from csm_expressive_nb.model.csm import load_csm
    settings = dict(
        source=few_clips,
        emotions=['sad', 'angry'],
        sentences=4,
        strength_sentences=1,
        batch=4,
        monitor='',
        trackers=[],
        dropout=0.0,
        sample_every=0,
        validate_every=2,
        steps=2,
    )
    options = []
    for name, value in settings.items(): options += ['--set', f'{name}={json.dumps(value)}']
    command = ('-m', 'csm_expressive_nb.cli', 'finetune', '--out', tmp_path / '2', '--gpus', 2)
    output = python(*command, *options, timeout=300)
    torch.set_num_threads(1)
    cfg = ExpressiveConfig(out=str(tmp_path / '1'), **settings)
    run = preparation.open_run(cfg)
    model, processor = load_csm()
    data = preparation.prepare_data(cfg, run, model, processor)
    emotion.fit(cfg, run, model, processor, data, show=False)
    assert output.count('report:') == 1
    assert set(json.loads((tmp_path / '2/report.json').read_text())['emotions']) == {'sad', 'angry'}
    assert_close(curve(tmp_path / '1'), curve(tmp_path / '2'))

@pytest.mark.slow
def test_every_setting_is_read(tmp_path, short_speech, few_clips):
    "A run that never looks at a setting would train something other than what was asked for"
    from csm_expressive_nb.pipelines import emotion, expressive
    from csm_expressive_nb.core.config import EmotionConfig, ExpressiveConfig
    torch.set_num_threads(1)
    settings = dict(
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
        trackers=[],
    )
    emotion_settings = dict(emotion='sad', sentences=8, strength_sentences=2)
    expressive_settings = dict(emotions=['sad', 'angry'], sentences=4, strength_sentences=1, sequential=True)
    for cls, pipeline, own_settings in (
        (EmotionConfig, emotion.emotion_run, emotion_settings),
        (ExpressiveConfig, expressive.finetune, expressive_settings),
    ):
        names_read = set()

        class Spy(cls):
            def __getattribute__(self, name):
                names_read.add(name)
                return super().__getattribute__(name)

        cfg = Spy(**settings, **own_settings, out=str(tmp_path / cls.__name__))
        names_read.clear()
        pipeline(cfg, show=False)
        missing = set(cls.model_fields) - names_read
        assert not missing, f'{cls.__name__}: never read: {sorted(missing)}'

if __name__ == '__main__': globals()[sys.argv[1]](sys.argv[2])
