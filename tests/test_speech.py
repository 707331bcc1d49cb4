"""Speaking on the true classes: the engine against transformers' `generate`, streams against whole sounds,
long texts, scripts that are killed, and what a shell does with the command"""
import os, resource, signal, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest, soundfile as sf, torch
from hypothesis import given, settings, strategies as st
from peft import PeftModel
from scipy.stats import chi2_contingency
from transformers import AutoModel
from transformers.models.mimi import MimiConfig

from csm_expressive_nb.core.config import make_config
from csm_expressive_nb.core.run import Run
from csm_expressive_nb.data.speakers import Reference
from csm_expressive_nb.model.csm import TINY_CODEC, load_csm, text_ids, tiny_csm
from csm_expressive_nb.model.lora import add_lora, load_adapter
from csm_expressive_nb.model.packing import Turn
from csm_expressive_nb.speech.engine import Engine, Sequence
from csm_expressive_nb.speech.generation import embed_conversation, reference_turn
from csm_expressive_nb.speech.speaker import Speaker
from csm_expressive_nb.speech.streaming import MimiStream, NanoStream
from csm_expressive_nb.training.rehearsal import neutral_utterances

TEXTS = 'Seven cups.', 'We cleaned the old window.', 'Rain fell on the roof all night.', 'Stop.'

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return str(tiny_csm(tmp_path_factory.mktemp('tiny')))

def randomize(lora, std: float = 0.1):
    "Adapter weights that are heard"
    generator = torch.Generator().manual_seed(0)
    for name, parameter in lora.named_parameters():
        if 'lora_B' in name: parameter.data.normal_(0, std, generator=generator)
    return lora

def references(n: int) -> list[Reference]:
    "Sounds of different lengths with their texts"
    rng = np.random.default_rng(0)
    sounds = [0.1 * rng.standard_normal(9_000 + 2_000 * i).astype(np.float32) for i in range(n)]
    return [Reference(text, sound, str(i)) for i, (text, sound) in enumerate(zip(TEXTS[::-1], sounds))]

def chat(text: str, context: list[Reference]) -> list[dict]:
    turns = []
    for turn in context:
        content = [dict(type='text', text=turn.text), dict(type='audio', audio=turn.audio)]
        turns.append(dict(role='0', content=content))
    return [*turns, dict(role='0', content=[dict(type='text', text=text)])]

def generate(model, processor, texts, contexts, n_frames: int, **settings) -> torch.Tensor:
    "transformers' codes `[B,T,K]`: left-padded, with the sounds of earlier turns"
    conversations = [chat(text, context) for text, context in zip(texts, contexts)]
    inputs = processor.apply_chat_template(conversations, tokenize=True, return_dict=True)
    invalid = list(range(model.config.codec_config.codebook_size, model.config.vocab_size))
    settings = dict(do_sample=False, suppress_tokens=invalid) | settings
    depth = {f'depth_decoder_{name}': value for name, value in settings.items()}
    return model.generate(**inputs, max_new_tokens=n_frames, **settings, **depth)

def speak(engine, model, processor, texts, contexts, n_frames: int, strengths=(), **settings) -> list:
    "The engine's codes of the same"
    sequences = []
    for text, context in zip(texts, contexts):
        turns = [reference_turn(model, processor, turn) for turn in context]
        embeddings = embed_conversation(model, turns, text_ids(processor, text))
        sequences.append(Sequence(embeddings, strengths=strengths, max_frames=n_frames))
    clips = [[] for _ in texts]
    for frame in engine.speak(sequences, **settings):
        if frame.codes is not None: clips[frame.sequence].append(frame.codes)
    return [torch.stack(clip) for clip in clips]

@pytest.mark.parametrize('n_turns', [0, 1, 2])
@pytest.mark.parametrize('adapter', ['none', 'unmerged', 'merged'])
@pytest.mark.parametrize('name', ['tiny', 'nano'])
def test_greedy_codes_are_those_of_generate(name, adapter, n_turns, tiny):
    model, processor = load_csm(tiny if name == 'tiny' else 'nano')
    if adapter != 'none': model = randomize(add_lora(model, 4, depth_rank=2), 0.1 if name == 'tiny' else 0.02)
    if adapter == 'merged': model.merge_adapter()
    contexts = [references(4)[i : i + n_turns] for i in range(4)]
    expected = generate(model, processor, TEXTS, contexts, 8)
    names = ['default'] if adapter == 'unmerged' else []
    engine = Engine(model, 3, 300, names)
    own = speak(engine, model, processor, TEXTS, contexts, 8, (1.0,) * len(names), temperature=0.0)
    assert sum(len(codes) for codes in own) > 10
    for codes, wanted in zip(own, expected): assert codes.equal(wanted[: len(codes)])

def drawn_codes(engine, model, processor, n: int, temperature: float) -> torch.Tensor:  # [n,2,K]
    "Two frames of the same sentence, `n` times"
    embeddings = embed_conversation(model, [], text_ids(processor, TEXTS[0]))
    sequences = [Sequence(embeddings, key=i, max_frames=2) for i in range(n)]
    clips = [[] for _ in sequences]
    for frame in engine.speak(sequences, temperature, 50): clips[frame.sequence].append(frame.codes)
    return torch.stack([torch.stack(clip) for clip in clips])

def p_values(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    "Of a chi-squared test per frame and codebook that two samples are of one distribution"
    values = []
    for frame in (0, 1):
        for codebook in (0, 1, 15, 31):
            pair = [sample[:, frame, codebook] for sample in (first, second)]
            counts = torch.stack([codes.bincount(minlength=2051) for codes in pair]).numpy()
            common = counts[:, counts.sum(0) >= 10]
            rest = counts.sum(1) - common.sum(1)
            table = np.column_stack([common, rest]) if rest.sum() else common
            values.append(chi2_contingency(table[:, table.sum(0) > 0]).pvalue)
    return values

@pytest.mark.slow
def test_sampled_frames_have_the_distribution_of_generate(tiny):
    """8 tests with 1,500 draws on each side; what they would notice is shown on a temperature of .5 instead
    of .9, which every one of them rejects, and of .7, which those of the first frame do"""
    model, processor = load_csm(tiny)
    with torch.no_grad():
        # weights of a trained model are not that flat: logits with a spread of some nats
        model.lm_head.weight.mul_(20)
        model.depth_decoder.codebooks_head.weight.mul_(20)
    torch.manual_seed(0)
    n = 1500
    sampling = dict(do_sample=True, temperature=0.9, top_k=50)
    expected = generate(model, processor, TEXTS[:1] * n, [[]] * n, 2, **sampling)
    engine = Engine(model, 250, 40)
    same = p_values(drawn_codes(engine, model, processor, n, 0.9), expected)
    assert min(same) > 0.001, same
    colder = p_values(drawn_codes(engine, model, processor, n, 0.5), expected)
    assert max(colder) < 1e-4, colder
    near = p_values(drawn_codes(engine, model, processor, n, 0.7), expected)
    assert sum(p < 0.01 for p in near) >= 4, near

def test_strength_0_is_the_base_bit_for_bit(tiny):
    model, processor = load_csm(tiny)
    embeddings = embed_conversation(model, [], text_ids(processor, TEXTS[1]))
    base = Engine(model, 2, 64)
    lora = randomize(add_lora(model, 4, depth_rank=2))
    adapted = Engine(lora, 2, 64, ['default'])
    base.enter([0, 1], [Sequence(embeddings, max_frames=20)] * 2)
    adapted.enter([0, 1], [Sequence(embeddings, strengths=(s,), max_frames=20) for s in (0.0, 1.0)])
    for _ in range(4):
        assert base.state[0].equal(adapted.state[0])
        assert not base.state[0].equal(adapted.state[1])
        codes, other = base.next_frame(2, 64, 0.9, 50), adapted.next_frame(2, 64, 0.9, 50)
        assert codes[0].equal(other[0])

def test_several_adapters_are_the_exact_sum_of_their_deltas(tiny):
    "Against the weights with both deltas added"
    lora = randomize(add_lora(load_csm(tiny)[0], 4, depth_rank=2))
    lora.add_adapter('second', lora.peft_config['default'])
    randomize(lora)
    for name, parameter in lora.named_parameters():
        if 'second' in name and 'lora_B' in name: parameter.data.neg_()
    engine = Engine(lora, 1, 100, ['default', 'second'])
    processor = load_csm(tiny)[1]
    own = speak(engine, lora, processor, TEXTS[:1], [[]], 6, (0.5, 1.2), temperature=0.0)[0]
    summed, _ = load_csm(tiny)
    modules = dict(summed.named_modules())
    for name, layer in lora.get_base_model().named_modules():
        if not hasattr(layer, 'lora_A'): continue
        delta = 0.5 * layer.get_delta_weight('default') + 1.2 * layer.get_delta_weight('second')
        modules[name].weight.data += delta
    expected = generate(summed, processor, TEXTS[:1], [[]], 6)[0]
    assert own.equal(expected[: len(own)])

def test_neighbours_do_not_change_a_sentence(tiny):
    "Alone, beside others, in few rows and in many, with padding of all rows or without"
    model, processor = load_csm(tiny)
    embeddings = [embed_conversation(model, [], text_ids(processor, text)) for text in TEXTS]

    def clips(engine, chosen) -> list:
        result = [[] for _ in chosen]
        sequences = [Sequence(embeddings[i], key=i, max_frames=4 + 3 * i) for i in chosen]
        for frame in engine.speak(sequences, 0.9, 50): result[frame.sequence].append(frame.codes.tolist())
        return result

    alone = [clips(Engine(model, 1, 64), [i])[0] for i in range(4)]
    for rows in (2, 3, 4):
        for static in (False, True):
            assert clips(Engine(model, rows, 64, static=static), range(4)) == alone

def cut(codes: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    "Codes in chunks of these sizes, in turn"
    parts, start, i = [], 0, 0
    while start < len(codes):
        parts.append(codes[start : start + sizes[i % len(sizes)]])
        start, i = start + sizes[i % len(sizes)], i + 1
    return parts

chunk_sizes = st.lists(st.integers(1, 50), min_size=1, max_size=6)

@pytest.fixture(scope='module')
def mimi():
    torch.manual_seed(0)
    codec = AutoModel.from_config(MimiConfig(**TINY_CODEC)).eval()
    codes = torch.randint(0, 2048, (70, 32))
    with torch.no_grad(): return codec, codes, codec.decode(codes.T[None]).audio_values[0, 0].numpy()

@given(sizes=chunk_sizes)
@settings(max_examples=25, deadline=None)
def test_a_stream_of_mimi_is_the_whole_sound(mimi, sizes):
    codec, codes, whole = mimi
    stream = MimiStream(codec)
    streamed = np.concatenate([stream.push(part) for part in cut(codes, sizes)] + [stream.finish()])
    assert len(streamed) == len(whole)
    assert abs(streamed - whole).max() <= 1e-3 * abs(whole).max()

@given(sizes=chunk_sizes, first=st.integers(0, 90))
@settings(max_examples=25, deadline=None)
def test_a_stream_of_nano_is_the_whole_sound(sizes, first):
    codec = load_csm()[0].codec_model
    codes = torch.cat([utterance.codes for utterance in neutral_utterances('heldout')[first : first + 3]])
    whole = codec.decode(codes.T[None]).audio_values[0, 0].numpy()
    stream = NanoStream(codec)
    streamed = np.concatenate([stream.push(part) for part in cut(codes, sizes)] + [stream.finish()])
    assert len(streamed) == len(whole)
    # at the ends of chunks; .0000004 elsewhere
    assert abs(streamed - whole).max() <= 0.02 * abs(whole).max()
    assert np.sqrt(np.mean((streamed - whole) ** 2)) <= 1e-3 * np.sqrt(np.mean(whole**2))

@pytest.fixture(scope='module')
def run_folder(tmp_path_factory) -> Path:
    "A run whose adapter has random weights"
    folder = tmp_path_factory.mktemp('runs') / 'sad'
    Run(folder, make_config(emotion='sad', rank=4)).release()
    randomize(add_lora(load_csm()[0], 4), 0.02).save_pretrained(folder / 'adapter')
    return folder

@pytest.mark.long
def test_three_minutes_are_streamed_with_constant_memory(run_folder):
    speaker = Speaker(adapter=run_folder)
    text = ' '.join(f'{TEXTS[i % 3]}' for i in range(120))
    seconds, peaks = 0.0, {}
    for chunk in speaker.stream(text, intensity=0.5, chunk=12):
        seconds += len(chunk) / 24_000
        peaks[int(seconds)] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024      # MiB
    assert seconds > 180
    after_30_s = next(peak for second, peak in sorted(peaks.items()) if second >= 30)
    assert peaks[max(peaks)] - after_30_s < 40

def command(*arguments) -> list[str]:
    return [sys.executable, '-m', 'csm_expressive_nb.cli', 'speak', *map(str, arguments)]

def contents(folder: Path) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}

@pytest.mark.long
def test_a_script_that_was_killed_ends_with_the_same_files(run_folder, tmp_path):
    script = tmp_path / 'lines.txt'
    script.write_text('\n'.join(f'{TEXTS[i % 4]} Line {i}.' for i in range(48)), encoding='utf-8')
    subprocess.run(command('--file', script, '--adapter', run_folder, '-o', tmp_path / 'whole'), check=True)
    killed = tmp_path / 'killed'
    process = subprocess.Popen(command('--file', script, '--adapter', run_folder, '-o', killed))
    while not (killed / 'manifest.jsonl').exists() and process.poll() is None: time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_done = len((killed / 'manifest.jsonl').read_text(encoding='utf-8').splitlines())
    assert 0 < n_done < 48
    subprocess.run(command('--file', script, '--adapter', run_folder, '-o', killed), check=True)
    assert contents(killed) == contents(tmp_path / 'whole')

@pytest.mark.slow
def test_a_stream_goes_to_a_pipe_and_ends_with_its_reader(run_folder, tmp_path):
    text = ' '.join(TEXTS) * 3
    options = text, '--adapter', run_folder
    wav = subprocess.run(command(*options, '--stream', 'wav'), capture_output=True, check=True)
    samples = np.frombuffer(wav.stdout[44:], '<i2') / 32767
    subprocess.run(command(*options, '-o', tmp_path / 'x.wav'), check=True)
    whole, rate = sf.read(tmp_path / 'x.wav')
    assert len(samples) == len(whole) and abs(samples - whole).max() < 0.02
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(command(*options, '--stream', 'raw'), **pipes)
    process.stdout.read(4000)
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait() == 0 and 'Traceback' not in error, error

def test_an_adapter_that_was_saved_is_found_by_its_emotions(run_folder, tmp_path):
    "A copy without its run: peft's files and emotions.json"
    copy = tmp_path / 'copy'
    model = load_adapter(load_csm()[0], run_folder / 'adapter')
    model.save_pretrained(copy)
    (copy / 'emotions.json').write_text('{"sad": "~"}', encoding='utf-8')
    voice = references(1)[0]
    speeches = [Speaker(adapter=source).say(TEXTS[0], voice) for source in (run_folder, copy)]
    assert np.array_equal(speeches[0].audio, speeches[1].audio)
    assert isinstance(model, PeftModel) and isinstance(speeches[0].codes, torch.Tensor)
    assert Turn(torch.zeros(1), speeches[0].codes).is_context and os.path.exists(copy)
