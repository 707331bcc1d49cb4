"What public reports did to programs like this one: each a small input made of tones, and the right outcome."
import json, os
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np, pytest, soundfile as sf
from typer.testing import CliRunner

from csm_expressive_nb import cli
from csm_expressive_nb.data import corpora, dataset, folders, readers, splits, tables
from csm_expressive_nb.data.merge import merge

TEXTS = ('We cleaned the old window.', 'The road was closed.', 'She came back late.',
         'Nobody saw the letter.', 'It rained.')

class Row(NamedTuple):
    "A row of a table"
    file: str
    text: str
    emotion: str
    speaker: str

ROWS = [Row(f'{i:02}.wav', TEXTS[i % 5], ('neutral', 'sad')[i % 2], f's{i // 4}') for i in range(24)]

# ---- helpers -----------------------------------------------------------------------------------------------

def tone(path, seed=0, seconds=0.4, rate=24_000, **options):
    "A tone that differs by `seed`, as a file"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(seconds * rate)) / rate
    noise = 0.002 * np.random.default_rng(seed).standard_normal(len(times))
    sf.write(path, 0.1 * np.sin(2 * np.pi * (150 + 3 * seed) * times) + noise, rate, **options)

def recordings(folder, rows=ROWS):
    "A recording for each row, below `folder`"
    for i, row in enumerate(rows):
        tone(folder / row.file, i)
    return folder

def with_texts(texts) -> list[Row]:
    "The first rows with other texts, one each"
    return [row._replace(text=text) for row, text in zip(ROWS, texts)]

def in_folder(name, rows=ROWS) -> list[Row]:
    "The rows with their files in a folder"
    return [row._replace(file=f'{name}/{row.file}') for row in rows]

def table(rows=ROWS, head='file,text,emotion,speaker', separator=','):
    "Rows as the text of a table"
    return '\n'.join([head, *(separator.join(row) for row in rows)]) + '\n'

def in_order(*columns, rows=ROWS) -> list[tuple]:
    "The cells of the rows in another order"
    return [attrgetter(*columns)(row) for row in rows]

def own(folder, text, name='metadata.csv', rows=ROWS, encoding='utf-8'):
    "A folder of one's own: recordings and a table"
    recordings(folder, rows)
    (folder / name).write_bytes(text.encode(encoding))
    return folder

def read(folder, corpus='folder', **options):
    "The corpus in a folder, or its error"
    return folders.read_corpus(folder, corpus, verify='off', **options)

def assert_refused(folder, message, corpus='folder', **options):
    "The folder is refused with these words"
    with pytest.raises(tables.CorpusError) as error: read(folder, corpus, **options)
    assert message in str(error.value), str(error.value)

def facts(corpus):
    "What the table says about each clip"
    return [(clip.source, clip.text, clip.emotion, clip.speaker) for clip in corpus.clips]

def texts_of(corpus):
    return [clip.text for clip in corpus.clips]

def command(*arguments):
    "A command of the product in this process: its result"
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])

# ---- 01: rows that swallow rows ----------------------------------------------------------------------------

def table_with_open_quote(head='file,emotion,speaker,text'):
    "A table in which the quote of line 6 closes in line 8"
    lines = table(in_order('file', 'emotion', 'speaker', 'text'), head).split('\n')
    lines[5] = '04.wav,neutral,s1,"Nobody saw the letter.'
    lines[7] = '06.wav,neutral,s1,"No", she said'
    return '\n'.join(lines)

OPEN_QUOTE = table_with_open_quote()
MALFORMED = dict(
    swallow=(OPEN_QUOTE, 'line 6'),
    open=(OPEN_QUOTE.replace('"No", she said', 'No'), 'line 6: unexpected end of data'),
    closed=(OPEN_QUOTE.replace('"No", she said', 'No."'), 'line 6: a field that begins here ends in'),
    surplus=(table().replace('It rained.', 'Yes, it.'), 'line 6: 5 fields, the header has 4: put a text'),
    short=(table() + '24.wav,Late.\n', 'line 26: 2 fields, the header has 4: one is missing'),
    huge=(table() + f'24.wav,{"a"*131_073},sad,s1\n', 'line 26: field larger than field limit'),
    nameless=(table() + ',Late.,sad,s1\n', 'line 26: no file name'),
    empty=('\n\n', 'metadata.csv is empty'))

@pytest.mark.parametrize('case', MALFORMED)
def test_a_malformed_row_is_named_with_file_and_line(case, tmp_path):
    text, message = MALFORMED[case]
    (tmp_path / 'metadata.csv').write_text(text, encoding='utf-8')
    assert_refused(tmp_path, 'metadata.csv')
    assert_refused(tmp_path, message)

def test_the_command_names_file_and_line_and_writes_no_dataset(tmp_path):
    own(tmp_path / 'in', OPEN_QUOTE)
    result = command('prepare', 'folder', '--source', tmp_path / 'in', '--out', tmp_path / 'out')
    assert result.exit_code
    assert 'metadata.csv, line 6' in str(result.exception)
    assert not (tmp_path / 'out').exists()

def test_quotes_that_are_right_stay_right(tmp_path):
    typed = ['"She said ""no"", twice."', 'A "quoted" word.', '"One, two."', ' "Blank, before."', 'Plain.',
             '"Whole."']
    texts = ['She said "no", twice.', 'A "quoted" word.', 'One, two.', 'Blank, before.', 'Plain.', 'Whole.']
    rows = with_texts(typed)
    corpus = read(own(tmp_path / 'a', table(rows), rows=rows))
    assert texts_of(corpus) == texts
    assert not corpus.notes

@pytest.mark.parametrize('name, separator', [('metadata.tsv', '\t'), ('a.csv', '|'), ('a.csv', '\t')])
def test_a_quote_in_a_table_with_tabs_or_bars_is_a_character(name, separator, tmp_path):
    typed = ['"No," she said.', 'He said "yes".', '"open', 'Plain.', f'"A {separator} B, ""C"""', 'it"s']
    texts = ['"No," she said.', 'He said "yes".', '"open', 'Plain.', f'A {separator} B, "C"', 'it"s']
    rows = with_texts(typed)
    text = table(rows, separator.join(Row._fields), separator)
    assert texts_of(read(own(tmp_path / 'a', text, name, rows))) == texts
    surplus = separator.join(('06.wav', 'a', 'b', 'sad', 's'))
    (tmp_path / 'a' / name).write_text(text + surplus, encoding='utf-8')
    assert_refused(tmp_path / 'a', f'{name}, line 8: 5 fields, the header has 4')

def test_tables_of_cremad_are_read_as_strictly(tmp_path):
    actors, votes = tmp_path / 'VideoDemographics.csv', tmp_path / 'processedResults/tabulatedVotes.csv'
    votes.parent.mkdir()
    head = '"ActorID","Age","Sex","Race","Ethnicity"\n'
    actors.write_text(f'{head}1001,51,"Male,"Caucasian","Not"\n', encoding='utf-8')
    votes.write_text('"","A","D","F","H","N","S","fileName","emoVote"\n"1",0,0,0,0,9\n', encoding='utf-8')
    assert_refused(tmp_path, "VideoDemographics.csv, line 2: ',' expected", 'cremad')
    actors.write_text('"ActorID","Age"\n1001,51\n', encoding='utf-8')
    assert_refused(tmp_path, 'VideoDemographics.csv, line 1: no column Sex, Race, Ethnicity', 'cremad')
    actors.write_text(f'{head}1001,51,"Male","C","Not"\n', encoding='utf-8')
    message = 'tabulatedVotes.csv, line 2: 6 fields, the header has 9: one is missing'
    assert_refused(tmp_path, message, 'cremad')

def test_tables_of_ravdess_are_read_as_strictly(tmp_path):
    (tmp_path / 'Actor_01').mkdir()
    (tmp_path / 'statements.csv').write_text('code,text\n03,"Seven\n04,Guest\n', encoding='utf-8')
    assert_refused(tmp_path, 'statements.csv, line 2', 'ravdess')
    (tmp_path / 'statements.csv').unlink()
    (tmp_path / 'corpus.csv').write_text('key,value\nname,x\n', encoding='utf-8')
    assert_refused(tmp_path, 'corpus.csv has no row licence', 'ravdess')

def test_the_table_of_ljspeech_is_read_as_strictly(tmp_path):
    line = 'LJ001-0001|"No," he said.|"No," he said.\n'
    (tmp_path / 'metadata.csv').write_text(line + 'LJ001-0002|a|b|c\n', encoding='utf-8')
    assert_refused(tmp_path, 'metadata.csv, line 2: 4 fields', 'ljspeech')
    (tmp_path / 'metadata.csv').write_text(line, encoding='utf-8')
    tone(tmp_path / 'wavs/LJ001-0001.wav', rate=22_050)
    assert readers.LJSpeech(tmp_path).texts == {'LJ001-0001': '"No," he said.'}

def test_line_ends_of_all_three_kinds_are_read(tmp_path):
    own(tmp_path / 'a', table())
    expected = facts(read(tmp_path / 'a'))
    assert len(expected) == 24
    for line_end in ('\r', '\r\n'):
        (tmp_path / 'a/metadata.csv').write_bytes(table().replace('\n', line_end).encode())
        assert facts(read(tmp_path / 'a')) == expected

def test_a_broken_line_of_json_is_named(tmp_path):
    lines = [json.dumps(row._asdict()) for row in ROWS]
    own(tmp_path / 'a', '\n'.join(lines), 'metadata.jsonl')
    assert facts(read(tmp_path / 'a')) == ROWS
    for broken in (lines[7][:-1] + ',}', '["07.wav", "sad"]', '07.wav'):
        text = '\n'.join([*lines[:7], broken, *lines[8:]])
        (tmp_path / 'a/metadata.jsonl').write_text(text, encoding='utf-8')
        assert_refused(tmp_path / 'a', 'metadata.jsonl, line 8: no JSON')

# ---- 03: encodings -----------------------------------------------------------------------------------------

TYPED = ('She didn’t come back.', 'Die Straße war für größere Autos gesperrt.', 'Un café, déjà vu.')
WESTERN = [row._replace(text=TYPED[i % 3].replace(',', '')) for i, row in enumerate(ROWS)]

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'cp1252'])
def test_a_text_is_as_it_was_typed_in_any_likely_encoding(encoding, tmp_path):
    corpus = read(own(tmp_path / 'a', table(WESTERN), encoding=encoding))
    assert facts(corpus) == WESTERN
    assert len(corpus.notes) == (encoding == 'cp1252')
    for note in corpus.notes:
        assert 'metadata.csv' in note
        assert 'save as UTF-8' in note

FOREIGN = [('我们擦了旧窗户', 'gb18030'), ('Мы вымыли окно', 'cp1251'), ('窓を拭いた', 'cp932'), ('naïve', 'utf-16-le'),
           ('a\x81', 'latin-1')]

@pytest.mark.parametrize('text, encoding', FOREIGN)
def test_another_alphabet_is_an_error_and_not_other_letters(text, encoding, tmp_path):
    own(tmp_path / 'a', table(with_texts([text] * len(ROWS))), encoding=encoding)
    assert_refused(tmp_path / 'a', 'save it as UTF-8')

def test_transcripts_beside_the_recordings_are_read_alike(tmp_path):
    beside = [('Straße', 'cp1252'), ('Füße', 'cp1252'), ('déjà', 'utf-16'), ('plain', 'utf-8')]
    for i, (text, encoding) in enumerate(beside):
        tone(tmp_path / f'sad/{i}.wav', i)
        (tmp_path / f'sad/{i}.txt').write_bytes(text.encode(encoding))
    corpus = read(tmp_path)
    assert texts_of(corpus) == ['Straße', 'Füße', 'déjà', 'plain']
    assert len(corpus.notes) == 1
    assert "2 text files (first sad/0.txt); if 'Straße' is not" in corpus.notes[0]
    (tmp_path / 'sad/3.txt').write_bytes('我们擦了旧窗户'.encode('gb18030'))
    assert_refused(tmp_path, '3.txt')

def test_esd_has_chinese_encodings_in_both_languages_and_blanks_for_tabs(tmp_path):
    "As published (HLTSingapore/Emotional-Speech-Data#1)"
    published = [('0001', '打远一看，它们的确很是吸引人。', 'gb18030'), ('0003', '打远一看。', 'utf-16'),
                 ('0016', 'I’ve kept “nine” eggs.', 'gb18030'), ('0017', 'I’ve kept nine.', 'cp1252')]
    for name, text, encoding in published:
        (tmp_path / name).mkdir()
        lines = f'{name}_000001\t{text}\tSad\n{name}_000002  {text} Sad\n'
        (tmp_path / name / f'{name}.txt').write_bytes(lines.encode(encoding))
        esd = readers.ESD(tmp_path)
        assert esd.texts[f'{name}_000001'] == esd.texts[f'{name}_000002'] == text
    assert ['0017/0017.txt' in note for note in esd.remarks()] == [True]

# ---- 08: columns -------------------------------------------------------------------------------------------

def test_blanks_around_names_and_values_do_not_count(tmp_path):
    rows = [(row.file, row.emotion, f' {row.text}', f' {row.speaker} ') for row in ROWS]
    corpus = read(own(tmp_path / 'a', table(rows, 'file,emotion, text, Speaker ')))
    assert facts(corpus) == ROWS
    assert not corpus.notes

def test_columns_that_are_not_understood_are_named(tmp_path):
    rows = [(*row, 'x', '', 'y', '') for row in ROWS]
    own(tmp_path / 'a', table(rows, 'file,text,emotion,spaeker,Take No,unused,,'))
    note = 'metadata.csv: not understood and not used: column spaeker, Take No, column 7'
    assert read(tmp_path / 'a').notes == [note]
    result = command('prepare', 'folder', '--source', tmp_path / 'a', '--out', tmp_path / 'out')
    assert f'note: {note}' in result.output
    assert dataset.Dataset(tmp_path / 'out').info['notes'] == [note]
    assert f'- {note}' in (tmp_path / 'out/README.md').read_text(encoding='utf-8')

def test_a_table_with_bars_and_other_names_of_columns(tmp_path):
    rows = in_order('file', 'text', 'speaker', 'emotion')
    corpus = read(own(tmp_path / 'a', table(rows, 'audio_file|text|speaker_name|emotion', '|')))
    assert facts(corpus) == ROWS
    assert not corpus.notes

def test_a_table_in_the_layout_of_ljspeech_needs_a_header(tmp_path):
    text = ''.join(f'{row.file[:-4]}|{row.text}|{row.text}\n' for row in ROWS)
    for i, row in enumerate(ROWS):
        tone(tmp_path / 'wavs' / row.file, i)
    (tmp_path / 'metadata.csv').write_text(text, encoding='utf-8')
    assert_refused(tmp_path, "metadata.csv has LJSpeech's layout")
    assert_refused(
        tmp_path, 'first line file|text|normalized, and add a column `emotion` or give `--emotion`'
    )
    (tmp_path / 'metadata.csv').write_text('file|text|normalized\n' + text, encoding='utf-8')
    corpus = read(tmp_path, emotion='neutral')
    assert [(clip.source, clip.text) for clip in corpus.clips] == [
        (f'wavs/{row.file}', row.text) for row in ROWS
    ]

# ---- 13: listed files that are not read --------------------------------------------------------------------

def rename_recordings(folder, suffix, rows=ROWS) -> list[Row]:
    "The folder's recordings under another suffix, which is not read; rows to match"
    renamed_rows = [row._replace(file=row.file[:-4] + suffix) for row in rows]
    for row, renamed in zip(rows, renamed_rows):
        (folder / row.file).rename(folder / renamed.file)
    return renamed_rows

@pytest.mark.parametrize('suffix', ['.m4a', '.aiff', '.wma', '.AMR'])
def test_a_folder_in_a_format_that_is_not_read_says_which_and_what_to_do(suffix, tmp_path):
    folder = recordings(tmp_path / 'a')
    (folder / 'metadata.csv').write_text(table(rename_recordings(folder, suffix)), encoding='utf-8')
    assert_refused(folder, f'24 files are {suffix.lower()}, first 00{suffix}: convert to WAV or FLAC')
    (folder / 'metadata.csv').unlink()
    (folder / 'sad').mkdir()
    for path in folder.glob('*.*'):
        path.rename(folder / 'sad' / path.name)
    assert_refused(folder, f'24 files are {suffix.lower()}, first sad/00{suffix}: convert to WAV or FLAC')

def test_listed_files_count_whatever_is_wrong_with_them(tmp_path):
    folder = recordings(tmp_path / 'a')
    rows = ROWS[:12] + rename_recordings(folder, '.m4a', ROWS[12:])
    (folder / 'metadata.csv').write_text(table(rows), encoding='utf-8')
    assert_refused(folder, '12 of 24 recordings')
    assert_refused(folder, '(`data prepare --max-rejected`): 12 files are .m4a, first 12.m4a: convert to WAV')
    assert len(read(folder, max_rejected=0.5).clips) == 12
    # copies that no table lists do not count
    (folder / 'metadata.csv').write_text(table(ROWS[:12]), encoding='utf-8')
    assert len(read(folder).clips) == 12
    # listed without a suffix, and not there
    missing = [row._replace(file=f'nowhere{row.file[:-4]}') for row in ROWS[12:]]
    (folder / 'metadata.csv').write_text(table(ROWS[:12] + missing), encoding='utf-8')
    assert_refused(folder, "12 of 12 rejected as 'missing'")

def test_aiff_named_wav_counts(tmp_path):
    for i in range(4):
        tone(tmp_path / f'sad/{i}.wav', i, format='AIFF', subtype='PCM_16')
    assert_refused(tmp_path, "4 of 4 rejected as 'wrong_format'")

# ---- 06, 07, 16: names -------------------------------------------------------------------------------------

@pytest.mark.parametrize('typed', [r'wavs\{}.wav', r'.\WAVS\{}.Wav', '{}', 'wavs/{}', 'wavs/{}.m4a'])
def test_a_file_is_found_under_the_name_that_was_typed(typed, tmp_path):
    rows = in_folder('wavs')
    typed_rows = [row._replace(file=typed.format(row.file[:-4])) for row in ROWS]
    corpus = read(own(tmp_path / 'a', table(typed_rows), rows=rows))
    assert facts(corpus) == rows
    first = f'{typed.format("00")} is wavs/00.wav'
    assert corpus.notes == [f'metadata.csv: 24 files were found under another spelling (first: {first})']

def test_a_name_in_another_unicode_form_is_found_and_one_of_two_is_not_guessed(tmp_path):
    tone(tmp_path / 'a/Füße.wav')
    tone(tmp_path / 'a/x/1.wav', 1)
    tone(tmp_path / 'a/y/1.wav', 2)
    (tmp_path / 'a/metadata.csv').write_text('file,emotion\nFu\u0308ße.wav,sad\n1,sad\n', encoding='utf-8')
    corpus = corpora.scan_folder(folders.Folder(tmp_path / 'a'))
    assert [clip.source for clip in corpus.clips] == ['Füße.wav']
    assert corpus.reasons() == dict(missing=1, unlisted=2)

def test_suffixes_of_the_publishers_are_compared_without_case(tmp_path):
    for i, code in enumerate(('01', '03', '04', '05')):
        tone(tmp_path / f'r/Actor_01/03-01-{code}-01-01-01-01.WAV', i, rate=48_000)
    assert len(read(tmp_path / 'r', 'ravdess').clips) == 4
    names = {readers.EmoDB: '03a01Fa.WAV', readers.Ravdess: '03-01-03-01-01-01-01.FLAC'}
    for reader, name in names.items():
        assert reader(tmp_path).parse(corpora.PurePosixPath(name))['emotion'] == 'happy'
    (tmp_path / 'metadata.CSV').write_text('file,emotion\nr,sad\n', encoding='utf-8')
    assert [path.name for path in folders.Folder.tables(tmp_path)] == ['metadata.CSV']

# ---- 17: an emotion that this project has no word for ------------------------------------------------------

def test_emodb_is_accepted_as_published(tmp_path):
    codes = ['W'] * 4 + ['N'] * 4 + ['L'] * 3
    for i, code in enumerate(codes):
        tone(tmp_path / f'a/wav/03a0{1 + i % 2}{code}{"abcd"[i % 4]}.wav', i, rate=16_000)
    corpus = read(tmp_path / 'a', 'emodb').accept(0.1)
    assert len(corpus.clips) == 8
    assert corpus.reasons() == dict(unknown_emotion=3)
    # a label that the publisher does not have is another matter
    for i in range(2): tone(tmp_path / f'a/wav/03a01X{"ab"[i]}.wav', 20 + i, rate=16_000)
    assert_refused(tmp_path / 'a', '2 of 10 recordings', 'emodb')

# ---- 19: channels that cancel each other -------------------------------------------------------------------

def test_a_channel_that_is_upside_down_has_a_reason_of_its_own(tmp_path):
    own(tmp_path / 'a', table())
    for i in range(3):
        sound, rate = sf.read(tmp_path / f'a/0{i}.wav')
        other = -sound if i else sound
        sf.write(tmp_path / f'a/0{i}.wav', np.stack([sound, 0.98 * other], 1), rate)
    corpus = read(tmp_path / 'a')
    assert corpus.reasons() == dict(cancelled=2)
    assert 'keep one of them' in corpus.quarantine[0].detail

# ---- 21: a chapter among sentences -------------------------------------------------------------------------

def test_a_clip_that_no_model_can_take_is_named(tmp_path):
    own(tmp_path / 'a', table())
    tone(tmp_path / 'a/05.wav', 5, seconds=100, rate=8000)
    result = command('prepare', 'folder', '--source', tmp_path / 'a', '--out', tmp_path / 'out')
    assert 'too long for nano, which takes 81 s: 05.wav (100 s); cut them into sentences' in result.output
    assert 'too long for csm-1b' not in result.output

# ---- 15: links ---------------------------------------------------------------------------------------------

def test_a_folder_is_visited_once(tmp_path):
    own(tmp_path / 'a', table())
    for name in ('latest', 'current'):
        os.symlink('.', tmp_path / 'a' / name)
    assert len(folders.Folder(tmp_path / 'a').files()) == 24
    assert facts(read(tmp_path / 'a')) == ROWS
    (tmp_path / 'a/metadata.csv').write_text(table(in_folder('latest')), encoding='utf-8')
    assert facts(read(tmp_path / 'a')) == ROWS
    # a link that comes before its folder
    (tmp_path / 'b/z').mkdir(parents=True)
    os.symlink('z', tmp_path / 'b/a')
    os.symlink(tmp_path / 'a', tmp_path / 'b/other')
    tone(tmp_path / 'b/z/1.wav')
    files = [path.as_posix() for path in folders.Folder(tmp_path / 'b', emotion='sad').files()]
    assert files[-1] == 'z/1.wav'
    assert len(files) == 25

# ---- 20: speakers ------------------------------------------------------------------------------------------

def test_names_that_differ_in_case_or_blanks_are_one_person(tmp_path):
    names = ('Ann', 'ann', 'A nn', 'Zoe\u0301', 'Zoé', 'Zoé')
    rows = [row._replace(speaker=names[i // 4]) for i, row in enumerate(ROWS)]
    own(tmp_path / 'a', table(rows))
    result = command('prepare', 'folder', '--source', tmp_path / 'a', '--out', tmp_path / 'out')
    prepared = dataset.Dataset(tmp_path / 'out')
    assert len(prepared.clips) == 24
    assert {clip.speaker for clip in prepared.clips} == {'Ann', 'Zoé'}
    # each in one split
    speakers = []
    for split in splits.SPLITS:
        speakers += {clip.speaker for clip in prepared.select(split=split)}
    assert sorted(speakers) == ['Ann', 'Zoé']
    (note,) = prepared.info['notes']
    assert "'Ann' (also 'A nn', 'ann')" in note
    assert f'note: {note}' in result.output

def test_one_person_stays_one_when_datasets_are_merged(tmp_path):
    spelled = dict(a=('Ann', ROWS[:12], 0), b=('ann', ROWS[12:], 50))
    for name, (speaker, rows, seed) in spelled.items():
        speaker_rows = [row._replace(speaker=speaker) for row in rows]
        own(tmp_path / name, table(speaker_rows), rows=rows)
        for i, row in enumerate(rows):
            tone(tmp_path / name / row.file, i + seed)
        dataset.prepare(tmp_path / name, tmp_path / f'd{name}', reader=dict(name='mine'))
    merged = merge([tmp_path / 'da', tmp_path / 'db'], tmp_path / 'm')
    assert {clip.speaker for clip in merged.clips} == {'Ann'}
    assert len({clip.split for clip in merged.clips}) == 1
    assert len(merged.clips) == 24
    assert "'Ann' (also 'ann')" in merged.info['notes'][0]

def test_one_person_stays_one_when_speakers_are_split(tmp_path):
    clip = read(own(tmp_path / 'a', table())).clips[0]
    spellings = [replace(clip, speaker=name, split='train') for name in ('Ann', 'ann', ' ANN', 'Bob', 'bob')]
    chosen = [assigned.split for assigned in splits.split_speakers(spellings)]
    assert len(set(chosen[:3])) == 1
    assert len(set(chosen[3:])) == 1
    assert len(set(chosen)) == 2

def test_notes_are_said_when_a_folder_is_prepared_on_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('CSM_EXPRESSIVE_CACHE', str(tmp_path / 'cache'))
    own(tmp_path / 'a', table(head='file,text,emotion,spaeker'))
    dataset.open_dataset(tmp_path / 'a')
    assert 'note: metadata.csv: not understood and not used: column spaeker' in capsys.readouterr().out
