"""What csm-1b needs and nano does not: memory that the settings bound, settings of its own, EWC at its size,
several processes, and refusals before anything is written. On csm-1b's true classes with tiny widths."""
import json, subprocess, sys
from pathlib import Path

import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from csm_expressive_nb import cli
from csm_expressive_nb.core.config import EmotionConfig, TrainConfig, make_config
from csm_expressive_nb.core.files import write_json
from csm_expressive_nb.model.csm import load_csm, tiny_csm
from csm_expressive_nb.model.lora import add_lora, base_name, load_base, save_adapter, trainable_parameters
from csm_expressive_nb.model.packing import Turn, pack
from csm_expressive_nb.pipelines import preparation
from csm_expressive_nb.training.ewc import Ewc
from csm_expressive_nb.training.fisher import Fisher, cached_fisher, estimate_fisher, gradient_hooks
from csm_expressive_nb.training.plan import MemoryCounter
from csm_expressive_nb.training.sampler import Example, evaluate_nll
from test_training import ENV, ROOT, python

@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> Path:
    return tiny_csm(tmp_path_factory.mktemp('tiny'))

def examples(n: int, frames: int = 40) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(1, 2048, (frames, 32), generator=generator) for _ in range(n)]
    return [Example(torch.arange(5, 15), [clip], text=str(i)) for i, clip in enumerate(codes)]

# ---- memory

def peak_of(function, model) -> int:
    "Bytes beside the model's own"
    with MemoryCounter() as memory:
        for tensor in (*model.parameters(), *model.buffers()): memory.track(tensor)
        before = memory.now
        function()
    return memory.peak - before

def test_without_gradients_the_depth_decoder_reads_in_chunks(tiny, monkeypatch):
    from csm_expressive_nb.model import loss
    model, _ = load_csm(str(tiny))
    peaks = []
    for chunk in (loss.DEPTH_CHUNK, 10**9):
        monkeypatch.setattr(loss, 'DEPTH_CHUNK', chunk)
        peaks.append(peak_of(lambda: evaluate_nll(model, examples(32), 10_000), model))
    assert peaks[0] < 0.7 * peaks[1], peaks

def test_a_model_is_loaded_in_the_precision_of_its_run(tiny):
    cfg = make_config(EmotionConfig, model=str(tiny), precision='bf16')
    model, _ = load_base(cfg)
    dtypes = {name.startswith('codec_model.'): p.dtype for name, p in model.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    lora = add_lora(model, 4)
    assert {p.dtype for p in trainable_parameters(lora).values()} == {torch.float32}

# ---- settings

def test_csm_1b_is_never_trained_with_the_settings_of_nano():
    nano, large = EmotionConfig(), EmotionConfig(model='sesame/csm-1b', source='data')
    for name in ('lr', 'precision', 'rank', 'corruption', 'depth_ratio', 'tokens'):
        assert getattr(nano, name) != getattr(large, name), name
    assert large.corruption == 0 and large.precision == 'bf16' and large.lr <= 2e-4
    assert EmotionConfig(model='csm-1b', lr=3e-4, tokens=None).lr == 3e-4

# ---- EWC

def test_gradients_of_one_matrix_are_gone_before_the_next_ones_come(tiny):
    model, _ = load_csm(str(tiny))
    sizes, held = [], []
    from csm_expressive_nb.model.loss import hidden_states
    batch = pack([examples(1)[0].conversation()])
    with MemoryCounter() as memory:

        def consume(name, inputs, grads):
            sizes.append(grads.numel() * 4)
            held.append(memory.now)

        with gradient_hooks(model, consume):
            states = hidden_states(model, batch)
            (states[0].sum() + states[1].sum()).backward()
    assert len(sizes) == 28
    # at the first layer, most is gone; gradients that were kept would make it .85 of what there was
    assert held[-1] < 0.6 * held[0], (held[0], held[-1], sum(sizes))

class LargestTensor(TorchDispatchMode):
    "Entries of the largest tensor that an operation makes"
    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor): self.entries = max(self.entries, tensor.numel())
        return result

def test_a_factored_penalty_makes_no_matrix_of_the_full_size(tiny):
    model, _ = load_csm(str(tiny))
    fisher = estimate_fisher(model, examples(4), 'factored', show=False)
    lora = add_lora(model, 2)
    penalty = Ewc(fisher, 3.0)
    smallest = min(len(fisher.values[f'{name}.row']) * len(fisher.values[f'{name}.col'])
                   for name in fisher.names())
    with LargestTensor() as largest: penalty(lora)
    assert largest.entries < smallest

def test_a_cached_fisher_comes_to_the_device_of_the_model(tiny, tmp_path, monkeypatch):
    model, _ = load_csm(str(tiny))
    monkeypatch.setenv('CSM_EXPRESSIVE_CACHE', str(tmp_path))
    options = dict(base='x', kind='factored', show=False)
    cached_fisher(model, examples(2), **options)
    moved = []
    monkeypatch.setattr(Fisher, 'to', lambda self, device: moved.append(str(device)) or self)
    cached_fisher(model, examples(2), **options)            # as a resumed run does
    assert moved == ['cpu']

def test_the_strength_of_ewc_does_not_depend_on_the_schedule(tiny, tmp_path, monkeypatch):
    from types import SimpleNamespace
    model, _ = load_csm(str(tiny))
    monkeypatch.setattr(preparation, 'base_importance', lambda *args: estimate_fisher(
        model, examples(4), 'factored', show=False))
    lora = add_lora(load_csm(str(tiny))[0], 4)
    for name, p in trainable_parameters(lora).items():
        if 'lora_B' in name: p.data.normal_(0, 0.02)
    values = []
    for steps, lr in ((2, 1e-3), (2000, 1e-5)):
        cfg = make_config(EmotionConfig, steps=steps, lr=lr, ewc=2.0)
        run = SimpleNamespace(__truediv__=None)
        monkeypatch.setattr(preparation, 'write_json', lambda path, value: None)
        values.append(preparation.build_ewc_penalty(cfg, tmp_path, model, None, show=False)(lora, add=False))
    assert values[0] == values[1] > 0

# ---- recorded updates

@pytest.mark.slow
def test_recorded_updates_train_the_same_adapter(tmp_path, monkeypatch):
    "With a teacher, a penalty, validation and samples between the updates; without a graph, on the CPU"
    from csm_expressive_nb.core.run import Run
    from csm_expressive_nb.training import loop
    from csm_expressive_nb.training.distillation import auxiliary_losses
    from test_training import small_run
    weights = {}
    for name in ('plain', 'recorded'):
        cfg, model, target, rehearsal, validation = small_run()
        cfg = cfg.model_copy(update=dict(distillation=1.0, depth_rank=4, sample_every=2))
        penalty = Ewc(estimate_fisher(model, rehearsal[:4], 'factored', show=False), 100.0)
        monkeypatch.setattr(loop, 'can_record', lambda *args, name=name: name == 'recorded')
        lora = loop.train(model, cfg, Run(tmp_path / name, cfg), target, rehearsal, validation,
                          auxiliary_losses=auxiliary_losses(cfg), penalties=[penalty], show=False,
                          sampling_callback=lambda model, step: dict(step=step))
        weights[name] = {n: p.detach().clone() for n, p in trainable_parameters(lora).items()}
    for name, expected in weights['plain'].items():
        assert (weights['recorded'][name] - expected).norm() <= 1e-3 * expected.norm(), name

# ---- several processes

def merge(folder: str):
    from csm_expressive_nb.model.lora import merge_adapter
    merged = merge_adapter(folder)
    load_csm(str(merged))                     # while the others may still be merging
    print(merged)

def resume_with_another_disk(folder: str):
    "Each process has a run folder of its own; only the first one has a checkpoint"
    import os
    from csm_expressive_nb.core.run import Run
    from csm_expressive_nb.training.loop import train
    from test_training import small_run
    cfg, model, target, rehearsal, validation = small_run()
    own = Path(folder) / os.environ['RANK']
    train(model, cfg, Run(own, cfg), target, rehearsal, validation, show=False)

@pytest.mark.long
def test_processes_that_merge_at_once_lose_nobody(tmp_path):
    (tmp_path / 'config.yaml').write_text('model: nano\n')
    save_adapter(add_lora(load_csm()[0], 4), tmp_path / 'adapter', base_name('nano'))
    command = [sys.executable, __file__, 'merge', str(tmp_path)]
    running = [subprocess.Popen(command, env=ENV, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True) for _ in range(4)]
    results = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0] * 4, results
    assert len({out.strip() for out, _ in results}) == 1
    assert len(list((tmp_path / 'merged').iterdir())) == 1

@pytest.mark.long
def test_processes_that_see_other_checkpoints_do_not_go_on(tmp_path):
    python(ROOT / 'tests/test_training.py', 'train_small_run', tmp_path / '0')
    for path in (tmp_path / '0').glob('adapter*'): path.rename(tmp_path / path.name)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2',
               __file__, 'resume_with_another_disk', str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=ROOT, timeout=240)
    assert process.returncode != 0
    assert 'processes see different checkpoints (process 0: 0000' in process.stderr, process.stderr[-2000:]
    assert 'process 1: none' in process.stderr

def test_processes_wait_for_hours(monkeypatch):
    from csm_expressive_nb.training import processes
    made = {}
    monkeypatch.setattr(processes, 'PartialState', lambda **settings: made.update(settings))
    processes.processes()
    assert made['timeout'].total_seconds() >= 12 * 3600

# ---- refusals, before anything is written

@pytest.mark.parametrize('command, message', [
    ('train sad --model csm-1b --data embedded', 'synthetic speech'),
    ('train sad --model csm-1b', 'no recordings are named'),
    ('estimate sad --model csm-1b --memory 24', 'no recordings are named'),
    ('train angri', "did you mean 'angry'"),
    ('train sad --model someone/no-such-model --data embedded', 'synthetic speech'),
])
def test_a_refused_command_leaves_no_folder_behind(command, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['csm_expressive', *command.split()])
    if command.startswith('train'): sys.argv += ['--out', str(tmp_path / 'run')]
    with pytest.raises(SystemExit) as end: cli.main()
    assert end.value.code == 1
    assert message in ''.join(capsys.readouterr())
    assert not (tmp_path / 'run').exists()

def test_of_several_emotions_a_misspelt_one_leaves_no_folder_behind(tmp_path, monkeypatch):
    from csm_expressive_nb.pipelines import emotion
    results = emotion.emotions_run(make_config(EmotionConfig), ['angri'], tmp_path, show=False)
    assert "did you mean 'angry'" in results['angri']
    assert [path.name for path in tmp_path.iterdir()] == ['emotions.json']

def test_a_model_that_cannot_be_loaded_leaves_no_folder_behind(tmp_path, monkeypatch):
    from csm_expressive_nb.pipelines import emotion
    cfg = make_config(EmotionConfig, model='csm-1b', source=str(ROOT / 'csm_expressive_nb/assets/corpus'),
                      monitor='', patience=0, out=str(tmp_path / 'run'))
    with pytest.raises(OSError, match='gated'): emotion.emotion_run(cfg, show=False)
    assert not (tmp_path / 'run').exists()

def test_a_choice_by_validation_without_validation_clips_is_refused_before_encoding(monkeypatch):
    ds = preparation.open_data(make_config(EmotionConfig))
    ds.clips = [clip for clip in ds.clips if clip.split != 'validation']
    monkeypatch.setattr(preparation, 'open_dataset', lambda *args: ds)
    with pytest.raises(ValueError, match='validation split.*monitor='):
        preparation.open_data(make_config(EmotionConfig, monitor='loss'))
    preparation.open_data(make_config(EmotionConfig))

def test_as_many_depth_frames_as_codebooks_are_no_special_case(tiny):
    from csm_expressive_nb.model.loss import hidden_states
    model, _ = load_csm(str(tiny))
    (example,) = examples(1, 31)                         # 32 frames with EOS
    assert hidden_states(model, pack([example.conversation()]))[1].shape[0] == 32

@pytest.mark.long
def test_the_proof_runs_as_a_notebook_on_true_classes(tiny, few_clips, tmp_path):
    settings = dict(
        emotion='sad', model=tiny, source=few_clips, out=tmp_path / 'run', steps=2, batch=2, rank=4,
        depth_rank=4, rehearsal_from='data', sentences=8, strength_sentences=0, validate_every=2, tokens=600,
        ewc=1.0, precision='bf16',
    )
    options = []
    for name, value in settings.items(): options += ['-p', name, str(value)]
    executed = tmp_path / 'out.ipynb'
    command = [sys.executable, '-m', 'papermill', str(ROOT / 'nbs/29_csm_1b.ipynb'), str(executed), *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ENV)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((tmp_path / 'run/report.json').read_text())
    assert {'low', 'high'} <= report['target_emotion_accuracy']['adapter'].keys()
    assert report['ewc']['penalty_ratio'] >= 0 and report['config']['precision'] == 'bf16'
    text = executed.read_text()
    assert 'has not been run on the weights of csm-1b' in text and 'speaking' in text

if __name__ == '__main__': globals()[sys.argv[1]](sys.argv[2])
