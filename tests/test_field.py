"What public reports did to programs like this one: each a small input made of tones, and the right outcome."
import json, os
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, soundfile as sf
from typer.testing import CliRunner

from csm_expressive_nb import cli, corpora, dataset

TEXTS = ('We cleaned the old window.', 'The road was closed.', 'She came back late.',
         'Nobody saw the letter.', 'It rained.')
# file, text, emotion, speaker
ROWS = [(f'{i:02}.wav', TEXTS[i % 5], ('neutral', 'sad')[i % 2], f's{i // 4}') for i in range(24)]

# ---- helpers -----------------------------------------------------------------------------------------------

def tone(path, seed=0, seconds=0.4, rate=24_000, **kw):
    "A tone that differs by `seed`, as a file"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(int(seconds * rate)) / rate
    noise = 0.002 * np.random.default_rng(seed).standard_normal(len(t))
    sf.write(path, 0.1 * np.sin(2 * np.pi * (150 + 3 * seed) * t) + noise, rate, **kw)

def recordings(folder, rows=ROWS):
    "A recording for each row, below `folder`"
    for i, row in enumerate(rows):
        tone(folder / row[0], i)
    return folder

def table(rows=ROWS, head='file,text,emotion,speaker', separator=','):
    "Rows as the text of a table"
    return '\n'.join([head, *(separator.join(r) for r in rows)]) + '\n'

def own(folder, text, name='metadata.csv', rows=ROWS, encoding='utf-8'):
    "A folder of one's own: recordings and a table"
    recordings(folder, rows)
    (folder / name).write_bytes(text.encode(encoding))
    return folder

def read(folder, corpus='folder', **kw):
    "The corpus in a folder, or its error"
    return corpora.read_corpus(folder, corpus, verify='off', **kw)

def refused(folder, says, corpus='folder', **kw):
    "The folder is refused with these words"
    with pytest.raises(corpora.CorpusError) as e: read(folder, corpus, **kw)
    assert says in str(e.value), str(e.value)

def facts(corpus):
    "What the table says about each clip"
    return [(c.source, c.text, c.emotion, c.speaker) for c in corpus.clips]

def command(*args):
    "A command of the product in this process: its result"
    return CliRunner().invoke(cli.app, [str(a) for a in args])

# ---- 01: rows that swallow rows ----------------------------------------------------------------------------

def swallowing(head='file,emotion,speaker,text'):
    "A table in which the quote of line 6 closes in line 8"
    lines = table([(f, e, s, t) for f, t, e, s in ROWS], head).split('\n')
    lines[5] = '04.wav,neutral,s1,"Nobody saw the letter.'
    lines[7] = '06.wav,neutral,s1,"No", she said'
    return '\n'.join(lines)

MALFORMED = dict(
    swallow=(swallowing(), 'line 6'),
    open=(swallowing().replace('"No", she said', 'No'), 'line 6: unexpected end of data'),
    closed=(swallowing().replace('"No", she said', 'No."'), 'line 6: a field that begins here ends in'),
    surplus=(table().replace('It rained.', 'Yes, it.'), 'line 6: 5 fields, the header has 4: put a text'),
    short=(table() + '24.wav,Late.\n', 'line 26: 2 fields, the header has 4: one is missing'),
    huge=(table() + f'24.wav,{"a"*131_073},sad,s1\n', 'line 26: field larger than field limit'),
    nameless=(table() + ',Late.,sad,s1\n', 'line 26: no file name'),
    empty=('\n\n', 'metadata.csv is empty'))

@pytest.mark.parametrize('case', MALFORMED)
def test_a_malformed_row_is_named_with_file_and_line(case, tmp_path):
    text, says = MALFORMED[case]
    (tmp_path / 'metadata.csv').write_text(text, encoding='utf-8')
    refused(tmp_path, 'metadata.csv')
    refused(tmp_path, says)

def test_the_command_names_file_and_line_and_writes_no_dataset(tmp_path):
    own(tmp_path / 'in', swallowing())
    r = command('prepare', 'folder', '--source', tmp_path / 'in', '--out', tmp_path / 'out')
    assert r.exit_code and 'metadata.csv, line 6' in str(r.exception) and not (tmp_path / 'out').exists()

def test_quotes_that_are_right_stay_right(tmp_path):
    said = ['"She said ""no"", twice."', 'A "quoted" word.', '"One, two."', ' "Blank, before."', 'Plain.',
            '"Whole."']
    want = ['She said "no", twice.', 'A "quoted" word.', 'One, two.', 'Blank, before.', 'Plain.', 'Whole.']
    rows = [(f, t, e, s) for (f, _, e, s), t in zip(ROWS, said)]
    c = read(own(tmp_path / 'a', table(rows), rows=rows))
    assert [x.text for x in c.clips] == want and not c.notes

@pytest.mark.parametrize('name, separator', [('metadata.tsv', '\t'), ('a.csv', '|'), ('a.csv', '\t')])
def test_a_quote_in_a_table_with_tabs_or_bars_is_a_character(name, separator, tmp_path):
    said = ['"No," she said.', 'He said "yes".', '"open', 'Plain.', f'"A {separator} B, ""C"""', 'it"s']
    want = ['"No," she said.', 'He said "yes".', '"open', 'Plain.', f'A {separator} B, "C"', 'it"s']
    rows = [(f, t, e, s) for (f, _, e, s), t in zip(ROWS, said)]
    text = table(rows, separator.join(('file', 'text', 'emotion', 'speaker')), separator)
    assert [x.text for x in read(own(tmp_path / 'a', text, name, rows)).clips] == want
    (tmp_path / 'a' / name).write_text(
        text + separator.join(('06.wav', 'a', 'b', 'sad', 's')), encoding='utf-8'
    )
    refused(tmp_path / 'a', f'{name}, line 8: 5 fields, the header has 4')

def test_tables_of_the_publishers_are_read_as_strictly(tmp_path):
    people, votes = tmp_path / 'VideoDemographics.csv', tmp_path / 'processedResults/tabulatedVotes.csv'
    votes.parent.mkdir()
    head = '"ActorID","Age","Sex","Race","Ethnicity"\n'
    people.write_text(f'{head}1001,51,"Male,"Caucasian","Not"\n', encoding='utf-8')
    votes.write_text('"","A","D","F","H","N","S","fileName","emoVote"\n"1",0,0,0,0,9\n', encoding='utf-8')
    refused(tmp_path, "VideoDemographics.csv, line 2: ',' expected", 'cremad')
    people.write_text('"ActorID","Age"\n1001,51\n', encoding='utf-8')
    refused(tmp_path, 'VideoDemographics.csv, line 1: no column Sex, Race, Ethnicity', 'cremad')
    people.write_text(f'{head}1001,51,"Male","C","Not"\n', encoding='utf-8')
    refused(tmp_path, 'tabulatedVotes.csv, line 2: 6 fields, the header has 9: one is missing', 'cremad')
    (tmp_path / 'Actor_01').mkdir()
    (tmp_path / 'statements.csv').write_text('code,text\n03,"Seven\n04,Guest\n', encoding='utf-8')
    refused(tmp_path, 'statements.csv, line 2', 'ravdess')
    (tmp_path / 'statements.csv').unlink()
    (tmp_path / 'corpus.csv').write_text('key,value\nname,x\n', encoding='utf-8')
    refused(tmp_path, 'corpus.csv has no row licence', 'ravdess')
    said = 'LJ001-0001|"No," he said.|"No," he said.\n'
    (tmp_path / 'metadata.csv').write_text(said + 'LJ001-0002|a|b|c\n', encoding='utf-8')
    refused(tmp_path, 'metadata.csv, line 2: 4 fields', 'ljspeech')
    (tmp_path / 'metadata.csv').write_text(said, encoding='utf-8')
    tone(tmp_path / 'wavs/LJ001-0001.wav', rate=22_050)
    assert corpora.LJSpeech(tmp_path).texts == {'LJ001-0001': '"No," he said.'}

def test_line_ends_of_all_three_kinds_are_read(tmp_path):
    own(tmp_path / 'a', table())
    want = facts(read(tmp_path / 'a'))
    for end in ('\r', '\r\n'):
        (tmp_path / 'a/metadata.csv').write_bytes(table().replace('\n', end).encode())
        assert facts(read(tmp_path / 'a')) == want and len(want) == 24

def test_a_broken_line_of_json_is_named(tmp_path):
    lines = [json.dumps(dict(file=f, text=t, emotion=e, speaker=s)) for f, t, e, s in ROWS]
    own(tmp_path / 'a', '\n'.join(lines), 'metadata.jsonl')
    assert facts(read(tmp_path / 'a')) == ROWS
    for bad in (lines[7][:-1] + ',}', '["07.wav", "sad"]', '07.wav'):
        (tmp_path / 'a/metadata.jsonl').write_text('\n'.join([*lines[:7], bad, *lines[8:]]), encoding='utf-8')
        refused(tmp_path / 'a', 'metadata.jsonl, line 8: no JSON')

# ---- 03: encodings -----------------------------------------------------------------------------------------

TYPED = ('She didn’t come back.', 'Die Straße war für größere Autos gesperrt.', 'Un café, déjà vu.')
WESTERN = [
    (f, TYPED[i % 3].replace(',', ''), e, s) for i, (f, _, e, s) in enumerate(ROWS)
]

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'cp1252'])
def test_a_text_is_as_it_was_typed_in_any_likely_encoding(encoding, tmp_path):
    c = read(own(tmp_path / 'a', table(WESTERN), encoding=encoding))
    assert facts(c) == WESTERN and len(c.notes) == (encoding == 'cp1252')
    if c.notes: assert 'metadata.csv' in c.notes[0] and 'save as UTF-8' in c.notes[0]

FOREIGN = [('我们擦了旧窗户', 'gb18030'), ('Мы вымыли окно', 'cp1251'), ('窓を拭いた', 'cp932'), ('naïve', 'utf-16-le'),
           ('a\x81', 'latin-1')]

@pytest.mark.parametrize('text, encoding', FOREIGN)
def test_another_alphabet_is_an_error_and_not_other_letters(text, encoding, tmp_path):
    own(tmp_path / 'a', table([(f, text, e, s) for f, _, e, s in ROWS]), encoding=encoding)
    refused(tmp_path / 'a', 'save it as UTF-8')

def test_transcripts_beside_the_recordings_are_read_alike(tmp_path):
    beside = [('Straße', 'cp1252'), ('Füße', 'cp1252'), ('déjà', 'utf-16'), ('plain', 'utf-8')]
    for i, (text, encoding) in enumerate(beside):
        tone(tmp_path / f'sad/{i}.wav', i)
        (tmp_path / f'sad/{i}.txt').write_bytes(text.encode(encoding))
    c = read(tmp_path)
    assert [x.text for x in c.clips] == ['Straße', 'Füße', 'déjà', 'plain']
    assert len(c.notes) == 1 and "2 text files (first sad/0.txt); if 'Straße' is not" in c.notes[0]
    (tmp_path / 'sad/3.txt').write_bytes('我们擦了旧窗户'.encode('gb18030'))
    refused(tmp_path, '3.txt')

def test_esd_has_chinese_encodings_in_both_languages_and_blanks_for_tabs(tmp_path):
    "As published (HLTSingapore/Emotional-Speech-Data#1)"
    published = [('0001', '打远一看，它们的确很是吸引人。', 'gb18030'), ('0003', '打远一看。', 'utf-16'),
                 ('0016', 'I’ve kept “nine” eggs.', 'gb18030'), ('0017', 'I’ve kept nine.', 'cp1252')]
    for name, text, encoding in published:
        (tmp_path / name).mkdir()
        lines = f'{name}_000001\t{text}\tSad\n{name}_000002  {text} Sad\n'
        (tmp_path / name / f'{name}.txt').write_bytes(lines.encode(encoding))
        esd = corpora.ESD(tmp_path)
        assert esd.texts[f'{name}_000001'] == esd.texts[f'{name}_000002'] == text
    assert ['0017/0017.txt' in note for note in esd.remarks()] == [True]

# ---- 08: columns -------------------------------------------------------------------------------------------

def test_blanks_around_names_and_values_do_not_count(tmp_path):
    rows = [(f, e, f' {t}', f' {s} ') for f, t, e, s in ROWS]
    c = read(own(tmp_path / 'a', table(rows, 'file,emotion, text, Speaker ')))
    assert facts(c) == ROWS and not c.notes

def test_columns_that_are_not_understood_are_named(tmp_path):
    rows = [(*r, 'x', '', 'y', '') for r in ROWS]
    own(tmp_path / 'a', table(rows, 'file,text,emotion,spaeker,Take No,unused,,'))
    note = 'metadata.csv: not understood and not used: column spaeker, Take No, column 7'
    assert read(tmp_path / 'a').notes == [note]
    r = command('prepare', 'folder', '--source', tmp_path / 'a', '--out', tmp_path / 'out')
    ds = dataset.Dataset(tmp_path / 'out')
    assert f'note: {note}' in r.output and ds.info['notes'] == [note]
    assert f'- {note}' in (tmp_path / 'out/README.md').read_text(encoding='utf-8')

def test_tables_with_bars_in_the_layout_of_other_projects(tmp_path):
    rows = [(f, t, s, e) for f, t, e, s in ROWS]
    c = read(own(tmp_path / 'a', table(rows, 'audio_file|text|speaker_name|emotion', '|')))
    assert facts(c) == ROWS and not c.notes
    text = ''.join(f'{f[:-4]}|{t}|{t}\n' for f, t, e, s in ROWS)
    for f, *_ in ROWS:
        tone(tmp_path / 'lj/wavs' / f, int(f[:2]))
    (tmp_path / 'lj/metadata.csv').write_text(text, encoding='utf-8')
    refused(tmp_path / 'lj', "metadata.csv has LJSpeech's layout")
    refused(
        tmp_path / 'lj', 'first line file|text|normalized, and add a column `emotion` or give `--emotion`'
    )
    (tmp_path / 'lj/metadata.csv').write_text('file|text|normalized\n' + text, encoding='utf-8')
    c = read(tmp_path / 'lj', emotion='neutral')
    assert [(x.source, x.text) for x in c.clips] == [(f'wavs/{f}', t) for f, t, *_ in ROWS]

# ---- 13: listed files that are not read --------------------------------------------------------------------

def renamed(folder, suffix, rows=ROWS):
    "The folder's recordings under another suffix, which is not read; rows to match"
    for r in rows:
        (folder / r[0]).rename(folder / (r[0][:-4] + suffix))
    return [(r[0][:-4] + suffix, *r[1:]) for r in rows]

@pytest.mark.parametrize('suffix', ['.m4a', '.aiff', '.wma', '.AMR'])
def test_a_folder_in_a_format_that_is_not_read_says_which_and_what_to_do(suffix, tmp_path):
    folder = recordings(tmp_path / 'a')
    (folder / 'metadata.csv').write_text(table(renamed(folder, suffix)), encoding='utf-8')
    refused(folder, f'24 files are {suffix.lower()}, first 00{suffix}: convert to WAV or FLAC')
    (folder / 'metadata.csv').unlink()
    (folder / 'sad').mkdir()
    for f in folder.glob('*.*'):
        f.rename(folder / 'sad' / f.name)
    refused(folder, f'24 files are {suffix.lower()}, first sad/00{suffix}: convert to WAV or FLAC')

def test_listed_files_count_whatever_is_wrong_with_them(tmp_path):
    folder = recordings(tmp_path / 'a')
    rows = ROWS[:12] + renamed(folder, '.m4a', ROWS[12:])
    (folder / 'metadata.csv').write_text(table(rows), encoding='utf-8')
    refused(folder, '12 of 24 recordings')
    refused(folder, '(`--max-rejected`): 12 files are .m4a, first 12.m4a: convert to WAV or FLAC')
    assert len(read(folder, max_rejected=0.5).clips) == 12
    (folder / 'metadata.csv').write_text(table(ROWS[:12]), encoding='utf-8')
    assert len(read(folder).clips) == 12                           # copies that no table lists do not count
    gone = [(f'nowhere{f[:-4]}', t, e, s) for f, t, e, s in ROWS[12:]]
    (folder / 'metadata.csv').write_text(table(ROWS[:12] + gone), encoding='utf-8')
    refused(folder, "12 of 12 set aside for 'missing'")            # listed without a suffix, and not there

def test_aiff_named_wav_counts(tmp_path):
    for i in range(4):
        tone(tmp_path / f'sad/{i}.wav', i, format='AIFF', subtype='PCM_16')
    refused(tmp_path, "4 of 4 set aside for 'wrong_format'")

# ---- 06, 07, 16: names -------------------------------------------------------------------------------------

@pytest.mark.parametrize('typed', [r'wavs\{}.wav', r'.\WAVS\{}.Wav', '{}', 'wavs/{}', 'wavs/{}.m4a'])
def test_a_file_is_found_under_the_name_that_was_typed(typed, tmp_path):
    rows = [(f'wavs/{f}', *r) for f, *r in ROWS]
    c = read(
        own(
            tmp_path / 'a',
            table([(typed.format(f[:-4]), *r) for f, *r in ROWS]),
            rows=rows,
        )
    )
    assert facts(c) == rows
    first = f'{typed.format("00")} is wavs/00.wav'
    assert c.notes == [f'metadata.csv: 24 files were found under another spelling (first: {first})']

def test_a_name_in_another_unicode_form_is_found_and_one_of_two_is_not_guessed(tmp_path):
    tone(tmp_path / 'a/Füße.wav')
    tone(tmp_path / 'a/x/1.wav', 1)
    tone(tmp_path / 'a/y/1.wav', 2)
    (tmp_path / 'a/metadata.csv').write_text('file,emotion\nFu\u0308ße.wav,sad\n1,sad\n', encoding='utf-8')
    c = corpora.read(corpora.Folder(tmp_path / 'a'))
    assert [x.source for x in c.clips] == ['Füße.wav'] and c.reasons() == dict(missing=1, unlisted=2)

def test_suffixes_of_the_publishers_are_compared_without_case(tmp_path):
    for i, e in enumerate((1, 3, 4, 5)):
        tone(tmp_path / f'r/Actor_01/03-01-0{e}-01-01-01-01.WAV', i, rate=48_000)
    assert len(read(tmp_path / 'r', 'ravdess').clips) == 4
    for cls, name in ((corpora.EmoDB, '03a01Fa.WAV'), (corpora.Ravdess, '03-01-03-01-01-01-01.FLAC')):
        assert cls(tmp_path).parse(corpora.PurePosixPath(name))['emotion'] == 'happy'
    (tmp_path / 'metadata.CSV').write_text('file,emotion\nr,sad\n', encoding='utf-8')
    assert [p.name for p in corpora.Folder.tables(tmp_path)] == ['metadata.CSV']

# ---- 15: links ---------------------------------------------------------------------------------------------

def test_a_folder_is_visited_once(tmp_path):
    own(tmp_path / 'a', table())
    for name in ('latest', 'current'):
        os.symlink('.', tmp_path / 'a' / name)
    assert len(corpora.Folder(tmp_path / 'a').files()) == 24 and facts(read(tmp_path / 'a')) == ROWS
    (tmp_path / 'a/metadata.csv').write_text(table([(f'latest/{f}', *r) for f, *r in ROWS]), encoding='utf-8')
    assert facts(read(tmp_path / 'a')) == ROWS
    (tmp_path / 'b/z').mkdir(parents=True)
    os.symlink('z', tmp_path / 'b/a')                               # a link that comes before its folder
    os.symlink(tmp_path / 'a', tmp_path / 'b/other')
    tone(tmp_path / 'b/z/1.wav')
    files = [p.as_posix() for p in corpora.Folder(tmp_path / 'b', emotion='sad').files()]
    assert files[-1] == 'z/1.wav' and len(files) == 25

# ---- 20: speakers ------------------------------------------------------------------------------------------

def test_names_that_differ_in_case_or_blanks_are_one_person(tmp_path):
    names = ('Ann', 'ann', 'A nn', 'Zoe\u0301', 'Zoé', 'Zoé')
    rows = [(f, t, e, names[i // 4]) for i, (f, t, e, _) in enumerate(ROWS)]
    own(tmp_path / 'a', table(rows))
    r = command('prepare', 'folder', '--source', tmp_path / 'a', '--out', tmp_path / 'out')
    ds = dataset.Dataset(tmp_path / 'out')
    assert {c.speaker for c in ds.clips} == {'Ann', 'Zoé'} and len(ds.clips) == 24
    sides = [{c.speaker for c in ds.select(split=s)} for s in dataset.SPLITS]
    assert sum(len(s) for s in sides) == 2
    (note,) = ds.info['notes']
    assert "'Ann' (also 'A nn', 'ann')" in note and f'note: {note}' in r.output

def test_one_person_stays_one_when_datasets_are_merged_or_split(tmp_path):
    for name, rows in (('a', ROWS[:12]), ('b', ROWS[12:])):
        speakers = [(f, t, e, ('Ann', 'ann')[name == 'b']) for f, t, e, s in rows]
        own(tmp_path / name, table(speakers), rows=rows)
        for i, r in enumerate(rows):
            tone(tmp_path / name / r[0], i + 50 * (name == 'b'))
        dataset.prepare(tmp_path / name, tmp_path / f'd{name}', reader=dict(name='mine'))
    m = dataset.merge([tmp_path / 'da', tmp_path / 'db'], tmp_path / 'm')
    assert {c.speaker for c in m.clips} == {'Ann'} and len({c.split for c in m.clips}) == 1
    assert len(m.clips) == 24 and "'Ann' (also 'ann')" in m.info['notes'][0]
    clip = m.clips[0]
    typed = [replace(clip, speaker=s) for s in ('Ann', 'ann', ' ANN', 'Bob', 'bob')]
    sides = [c.split for c in dataset.split_speakers(typed)]
    assert len(set(sides[:3])) == len(set(sides[3:])) == 1 and len(set(sides)) == 2

def test_notes_are_said_when_a_folder_is_prepared_on_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, 'root', lambda: tmp_path)
    own(tmp_path / 'a', table(head='file,text,emotion,spaeker'))
    dataset.dataset_of(tmp_path / 'a')
    assert 'note: metadata.csv: not understood and not used: column spaeker' in capsys.readouterr().out
