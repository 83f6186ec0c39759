"Properties of tables and splits that examples can't cover"
import os, re, sys, tempfile, time, warnings
from pathlib import Path
from unittest import mock
import numpy as np, pandas as pd, pytest, sklearn
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from pandas.testing import assert_frame_equal
from packaging.version import parse
from PIL import Image
from vision_ft.core import DataError, SettingsError
from vision_ft.data.tables import (check_table, drop_unreadable, group_counts, group_pairs, image_files, image_table, label_counts, leaks, make_split,
                                   plot_label_counts, read_csv, read_folder, read_split, read_text, same_bytes, save_split, saved_split, split_changes,
                                   split_rows, trial_set, update_split)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# text that CSV readers like to change: numbers, gaps, quotes, commas
awkward = st.sampled_from(['007', '1e5', 'NA', 'nan', 'null', 'None', 'True', '0', '00', '-1', ' x', 'a,b', 'a"b', "l'été", '水稻', '#c']) | st.text('ab01.,"_ ', min_size=1, max_size=6).filter(str.strip)

def files(folder, rows):
    "A table of files with the given labels and contents"
    d = pd.DataFrame(dict(id=[f'{i:03d}.jpg' for i in range(len(rows))], label=[l for l, _ in rows]))
    d['path'] = [str(Path(folder)/i) for i in d.id]
    for p, (_, content) in zip(d.path, rows): Path(p).write_text(content)
    return d

@quick
@given(st.lists(st.tuples(st.sampled_from('abc'), st.integers(0, 25)), min_size=8, max_size=60), st.integers(2, 5), st.integers(0, 9),
       st.dictionaries(st.integers(0, 59), st.integers(0, 20), max_size=20))
def test_groups_and_copies_never_straddle(rows, k, seed, groups):
    with tempfile.TemporaryDirectory() as tmp, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        df = files(tmp, [(l, f'image {c}') for l, c in rows])
        groups = {df.id[i]: g for i, g in groups.items() if i < len(df)}
        try: split = make_split(df, k, seed, groups)
        except DataError: assume(False)
        assert sorted(split.id) == list(df.id) and set(split.fold) == set(range(k))
        assert not len(leaks(split, groups)) and not len(leaks(split, {i: c for i, (_, c) in zip(df.id, rows)}))
        assert pd.crosstab(split.fold, split.label).to_numpy().min() > 0
        assert_frame_equal(make_split(df.sample(frac=1, random_state=seed), k, seed, groups), split)
        parts = [split_rows(df, split, f) for f in range(k)]
        assert sorted(i for _, held in parts for i in held.id) == list(df.id)
        assert all(set(train.id).isdisjoint(held.id) and len(train)+len(held) == len(df) for train, held in parts)

@quick
@given(st.lists(st.sampled_from('abc'), min_size=12, max_size=60), st.integers(2, 4), st.integers(0, 9))
def test_without_copies_folds_are_even(labels, k, seed):
    with tempfile.TemporaryDirectory() as tmp:
        df = files(tmp, [(l, str(i)) for i, l in enumerate(labels)])
        assume(df.label.value_counts().min() >= k)
        n = pd.crosstab((s := make_split(df, k, seed)).fold, s.label)
        assert (n.max()-n.min()).max() <= 1

@quick
@given(st.dictionaries(awkward, awkward, min_size=1, max_size=12), st.data())
def test_a_saved_split_keeps_every_character_and_notices_every_change(labels, data):
    df = pd.DataFrame(dict(id=list(labels), label=list(labels.values())))
    split = df.assign(fold=[i % 3 for i in range(len(df))])
    with tempfile.TemporaryDirectory() as tmp:
        csv = save_split(split, Path(tmp)/'split.csv')
        back = read_split(csv, df)
        assert back.to_dict('list') == split.to_dict('list')
        i = data.draw(st.integers(0, len(df)-1))
        added, relabelled = pd.concat([df, pd.DataFrame(dict(id=['new.jpg'], label=['a']))]), df.assign(label=[l+'!' if j == i else l for j, l in enumerate(df.label)])
        with pytest.raises(DataError, match='1 image new'): read_split(csv, added)
        with pytest.raises(DataError, match='1 image with another label'): read_split(csv, relabelled)
        if len(df) > 1:
            with pytest.raises(DataError, match='1 image gone'): read_split(csv, df.drop(index=i))

@quick
@given(st.dictionaries(st.text('01289', min_size=1, max_size=5), st.sampled_from(['NA', '01', 'blast']), min_size=1, max_size=8), st.booleans(), st.booleans())
def test_ids_of_a_csv_find_their_files(labels, in_folders, with_suffix):
    with tempfile.TemporaryDirectory() as tmp:
        for i, l in labels.items():
            f = Path(tmp)/'images'/(l if in_folders else '')/f'{i}.jpg'
            f.parent.mkdir(parents=True, exist_ok=True); f.write_text(i)
        csv = Path(tmp)/'train.csv'
        pd.DataFrame(dict(image_id=[i+'.jpg'*with_suffix for i in labels], label=list(labels.values()), age=3)).to_csv(csv, index=False)
        df = read_csv(csv, Path(tmp)/'images')
        assert [Path(p).read_text() for p in df.path] == list(labels) and list(df.label) == list(labels.values())

def test_an_id_that_fits_two_files_is_refused(tmp_path):
    for s in ('jpg', 'png'): (tmp_path/f'a.{s}').write_text('')
    (tmp_path/'train.csv').write_text('id,label\na,x\n')
    with pytest.raises(DataError, match='several files'): read_csv(tmp_path/'train.csv', tmp_path)

@pytest.mark.parametrize('name,spelled', [('e\u0301.png', '\xe9.png'), ('\xe9.png', 'e\u0301.png'), ('e\u0301.png', '\xe9'), ('0.png', './0.png'), ('0.png', '0.PNG'),
                                          ('0.PNG', './0.png'), ('E\u0301/A b.JPG', './\xe9/a B'), ('l\u0301a/0.png', '0.png'), ('l\u0301a/0.png', './0.PNG')])
def test_ids_find_files_that_are_named_otherwise(tmp_path, name, spelled):
    (file := tmp_path/'images'/name).parent.mkdir(parents=True)
    file.touch()
    (tmp_path/'train.csv').write_text(f'id,label\n{spelled},\u013aa\n', encoding='utf-8')
    df = read_csv(tmp_path/'train.csv', tmp_path/'images')
    assert df.id.tolist() == [name] and df.path.tolist() == [str(file)]

def test_case_tells_files_apart_where_both_exist(tmp_path):
    for name in ('a.png', 'A.png'): (tmp_path/name).write_text(name)
    if len(list(tmp_path.iterdir())) < 2: pytest.skip('this file system takes both names for one')
    (csv := tmp_path/'t.csv').write_text('id,label\nA.png,x\n./a.png,y\n')
    assert read_csv(csv, tmp_path).id.tolist() == ['A.png', 'a.png']
    csv.write_text('id,label\nA.PNG,x\n')
    with pytest.raises(DataError, match="id 'A.PNG' fits several files: .*A.png") as e: read_csv(csv, tmp_path)
    assert 'as the file is named' in e.value.fix
    csv.write_text('id,label\na.png,x\n./a.png,y\n')
    with pytest.raises(DataError, match='name the same file: a.png, ./a.png'): read_csv(csv, tmp_path)

def test_copies_with_two_labels_stay_together_and_are_reported(tmp_path):
    df = files(tmp_path, [('ab'[i % 2], str(i//2 if i < 2 else i)) for i in range(12)])
    with pytest.warns(UserWarning, match='several labels, such as 000.jpg, 001.jpg'): split = make_split(df, 3)
    assert split.fold[0] == split.fold[1]

def test_no_look_alike_of_the_rice_photos_straddles_folds(tmp_path):
    root = Path(os.environ.get('VISION_FT_DATA', ''))/'rice'
    if not os.environ.get('VISION_FT_DATA') or not (root/'pairs.csv').exists(): pytest.skip('VISION_FT_DATA does not name a folder with rice/: real photos are not part of the repository')
    df = check_table(read_folder(root/'photos'))
    pairs = pd.read_csv(root/'pairs.csv')
    pairs = pairs[pairs.a.str.startswith('photos/') & pairs.b.str.startswith('photos/') & (pairs.correlation >= .97)]
    for c in 'ab': pairs[c] = pairs[c].str.removeprefix('photos/')
    assert len(pairs) and set(pairs.a) | set(pairs.b) <= set(df.id)
    for seed in range(5):
        split = saved_split(df, tmp_path/f'{seed}.csv', 5, seed, group_pairs(pairs))
        fold = split.set_index('id').fold
        assert (fold[pairs.a].to_numpy() == fold[pairs.b].to_numpy()).all()
        n = pd.crosstab(split.fold, split.label)
        assert (n.max()-n.min()).max() <= (3 if parse(sklearn.__version__) >= parse('1.8') else 9) # older ones shuffle the balance away

# --- CSV files

@pytest.mark.parametrize('text', ['id,label\n007, rust\n', ' id ,label \n 007,rust\t\n', 'id,\tlabel\n007 ,  "rust"\n', '\ufeffid, label\n007,rust\u00a0\n', 'id,label\n007,\u200brust \u200b\n', 'id,label\u2060\n007\ufeff,rust\n'])
def test_blanks_around_cells_are_left_out_with_a_word(tmp_path, text):
    (csv := tmp_path/'t.csv').write_text(text, encoding='utf-8')
    with pytest.warns(UserWarning, match='t.csv: blanks'): d = read_text(csv)
    assert d.to_dict('list') == {'id': ['007'], 'label': ['rust']}

@pytest.mark.parametrize('rows', ['1.png, "a, b"\n', '0.png,x\n1.png, "a, b"\n', '0.png,x\n1.png, "a, b"\n2.png,"c"\n', '1.png, "a\n, b"\n'])
def test_a_blank_before_a_quote_is_csv(tmp_path, rows):
    (csv := tmp_path/'t.csv').write_text('id,label\n'+rows)
    with pytest.warns(UserWarning, match='t.csv: blanks') as said: d = read_text(csv).set_index('id')
    assert len(said) == 1 and d.label['1.png'].replace('\n', '') == 'a, b' and len(d) == rows.count('.png')

@pytest.mark.parametrize('text', ['id,label\n1,2,3\n4,5,6,7,8\n', 'id,label\n1,"a\n', 'id,label\n1,x\n2,a,b,c\n'])
def test_what_is_no_csv_stays_refused(tmp_path, text):
    (csv := tmp_path/'t.csv').write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', pd.errors.ParserWarning)
        with pytest.raises(DataError, match='not CSV in UTF-8'): read_text(csv)

def test_text_without_blanks_is_kept_in_silence(tmp_path):
    (csv := tmp_path/'t.csv').write_text('id,label\n1,"a, b"\n2,NA\n3,"say ""hi"""\n4\n')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert read_text(csv).label.tolist() == ['a, b', 'NA', 'say "hi"', '']
        assert read_text(csv, strip=False).equals(read_text(csv))
    (csv).write_text('id,label\n1, a \n')
    assert read_text(csv, strip=False).label.tolist() == [' a ']

def test_a_comma_at_the_end_of_each_row_shifts_nothing(tmp_path):
    (csv := tmp_path/'t.csv').write_text('id,label\n1,a,\n2,b,\n')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', pd.errors.ParserWarning) # pandas 3 says that it left something out, pandas 2 doesn't
        assert read_text(csv).to_dict('list') == {'id': ['1', '2'], 'label': ['a', 'b']}

def test_blanks_in_groups_and_labels(tmp_path):
    "Labels that differ by a blank become one class, groups with blanks are the same groups"
    for i in range(4): (tmp_path/f'{i}.jpg').write_text(str(i))
    (tmp_path/'train.csv').write_text('id,label\n0.jpg,a\n1.jpg, a\n2.jpg,b\n 3.jpg,b \n')
    (tmp_path/'groups.csv').write_text('id, group\n0.jpg, g\n1.jpg ,g\n')
    with pytest.warns(UserWarning, match='blanks'): df = read_csv(tmp_path/'train.csv', tmp_path)
    assert df.label.tolist() == ['a', 'a', 'b', 'b']
    with pytest.warns(UserWarning, match='blanks'): groups = read_text(tmp_path/'groups.csv')
    assert group_counts(df, groups).to_dict('index') == {'a': dict(images=2, groups=1), 'b': dict(images=2, groups=2)}

def test_20000_rows_are_read_and_checked_in_linear_time(tmp_path):
    ids = [f'{i:05d}' for i in range(20_000)]
    df = pd.DataFrame(dict(id=ids, label=['ab'[i % 2] for i in range(20_000)], path=''))
    (f := tmp_path/'x').write_text('x')
    df['path'] = str(f)
    df.drop(columns='path').to_csv(tmp_path/'train.csv', index=False)
    split = df[['id', 'label']].assign(fold=[i//2 % 5 for i in range(20_000)])
    start = time.process_time()
    assert len(read_text(tmp_path/'train.csv')) == 20_000
    assert read_split(save_split(split, tmp_path/'split.csv'), df).equals(split)
    assert len(split_rows(df, split, 0)[0]) == 16_000
    assert len(group_counts(df[:2000])) == 2 and len(same_bytes(df[:1000], df[1000:3000])) == 2000
    assert time.process_time()-start < 4

# --- classes and files

def no_heic(): return mock.patch.dict(sys.modules, pillow_heif=None) # as if it were not installed

def drawn(folder, **classes):
    for c, (label, n) in enumerate(classes.items()):
        (folder/label).mkdir(parents=True)
        for i in range(n): Image.new('RGB', (8, 8), (20*c, i, 0)).save(folder/label/f'{i}.png')
    return folder

@pytest.mark.parametrize('other', ['RUST', 'rust ', ' Rust', 'r ust', 'ru\uff53t', 'rust\u200b', '\ufeffru\u2060st'])
def test_classes_equal_but_for_case_or_blanks_get_a_word(tmp_path, other):
    df = read_folder(drawn(tmp_path, **{'rust': 3, other: 3, 'scab': 3}))
    with pytest.warns(UserWarning, match='equal but for case or blanks') as said: assert check_table(df) is df
    assert repr(other) in str(said[0].message) and "'rust'" in str(said[0].message) and 'scab' not in str(said[0].message)
    with warnings.catch_warnings(): # as advised: one name
        warnings.simplefilter('error')
        check_table(df.replace(dict(label={other: 'rust'})))

PARTS = ['seg_train seg_test', 'train_set test_set', 'train test unlabeled', 'train test seg_pred', 'train dev', 'Training~Data Test~Data', 'Train Test',
         'TrainSet TestSet', 'train validation', 'train1 train2 test', 'train test annotated', 'Test', 'val_images test_images']

@pytest.mark.parametrize('parts', PARTS)
def test_parts_of_data_are_no_classes(tmp_path, parts):
    for i, part in enumerate(parts.split()): drawn(tmp_path/part.replace('~', ' '), cat=2+i, dog=2)
    with pytest.raises(DataError, match='parts of data') as e: read_folder(tmp_path)
    assert 'pass the part with the class folders' in e.value.fix
    assert set(read_folder(next(tmp_path.iterdir())).label) == {'cat', 'dog'} # as advised

@pytest.mark.parametrize('part', ['test_images', 'Test Set', 'unlabeled-images'])
def test_a_folder_of_new_images_beside_the_classes_is_no_class(tmp_path, part):
    drawn(tmp_path, cat=3, dog=3, **{part: 3})
    with pytest.raises(DataError, match='parts of data'): read_folder(tmp_path)

def test_folders_that_look_like_parts_get_a_word(tmp_path):
    for part in ('batch a', 'batch b'): drawn(tmp_path/part, cat=2, dog=2)
    with pytest.warns(UserWarning, match='batch a, batch b are taken for classes, and each holds the folders cat, dog') as said: df = read_folder(tmp_path)
    assert set(df.label) == {'batch a', 'batch b'} and said[0].filename == __file__
    assert str(said[0].message).endswith(f'pass {tmp_path/"batch a"}.')
    with warnings.catch_warnings(): # as advised
        warnings.simplefilter('error')
        assert set(read_folder(tmp_path/'batch a').label) == {'cat', 'dog'}

@pytest.mark.parametrize('folders', ['test_tube beaker', 'test_tube train_station', 'train bus car', 'test_1 test_2', 'valid invalid', 'devil trainer', 'data images', 'cat/one dog/one',
                                     'cat/one cat/two dog/one', 'cat/one cat/two cat dog/one dog/two dog', 'cat/one cat/two dog/one dog/three', '1 2', '水稻 小麦'])
def test_ordinary_class_folders_are_read_in_silence(tmp_path, folders):
    for f in folders.split():
        (folder := tmp_path/f.replace('_', ' ')).mkdir(parents=True, exist_ok=True)
        (folder/'1.png').touch()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert read_folder(tmp_path).label.nunique() > 1

def test_files_of_other_kinds_are_counted(tmp_path):
    drawn(tmp_path, cat=2, dog=2)
    for name in ('a.heic', 'b.HEIC', 'raw', 'notes.txt', 'Thumbs.db', '.hidden.heic'): (tmp_path/'cat'/name).touch()
    for name in ('more.jfif', 'more.avif', 'more.JPG'): Image.new('RGB', (8, 8)).save(tmp_path/'dog'/name)
    with no_heic(), pytest.warns(UserWarning) as said: df = read_folder(tmp_path)
    assert str(said[0].message) == (f"{tmp_path}: left out: 1 hidden (cat/.hidden.heic); 2 .heic, which needs pip install 'vision_ft[heic]' "
                                    '(cat/a.heic …); 1 without a suffix (cat/raw).') and said[0].filename == __file__
    assert len(check_table(df)) == 7 and {'dog/more.jfif', 'dog/more.avif', 'dog/more.JPG'} < set(df.id)

def test_a_file_name_that_is_not_utf8_is_refused_by_name(tmp_path):
    drawn(tmp_path, cat=2, dog=2)
    try: os.rename(tmp_path/'cat'/'0.png', os.fsencode(tmp_path)+b'/cat/caf\xe9.png')
    except OSError: pytest.skip('this file system takes UTF-8 names only')
    for read in (read_folder, image_files):
        with pytest.raises(DataError, match=r'1 file name not in UTF-8, such as .*caf\\udce9\.png') as e: read(tmp_path)
        str(e.value).encode() # can be printed

# --- splits: what is advised works

def fix(error, call, *args, **kwargs):
    with pytest.raises(error) as e: call(*args, **kwargs)
    return e.value.fix

def test_advised_folds_work(tmp_path):
    df = files(tmp_path, [('abc'[min(i//20, 2)], str(i)) for i in range(43)])
    k = int(re.search(r'--folds (\d+)', fix(DataError, make_split, df, 5))[1])
    assert k == 3 and set(make_split(df, k).fold) == {0, 1, 2}
    assert set(make_split(df[df.label != 'c'], 5).fold) == set(range(5)) # drop the class
    (tmp_path/'more').mkdir()
    new = files(tmp_path/'more', [('c', f'more {i}') for i in range(2)])
    more = pd.concat([df, new.assign(id='more/'+new.id)])
    assert set(make_split(more, 5).fold) == set(range(5)) # add images
    k = int(re.search(r'--folds (\d+)', fix(SettingsError, make_split, df, 1))[1])
    assert len(make_split(more, k))

def test_large_groups_and_the_advice(tmp_path):
    "Each class in two groups that share labels: no fourth fold can hold both classes"
    df = files(tmp_path, [('ab'[i % 2], str(i)) for i in range(24)])
    big = dict(zip(df.id, [0]*18+[1, 1, 2, 3, 4, 5]))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert '--folds' in fix(DataError, make_split, df, 4, groups=big) and '--holdout' in fix(DataError, make_split, df, 4, groups=big)
        assert len(make_split(df, 2, groups=big)) and len(make_split(df, 4, groups={i: g for i, g in big.items() if g != 0})) # fewer folds, smaller groups

def test_advice_about_a_saved_split(tmp_path):
    df, csv = files(tmp_path, [('ab'[i % 2], str(i)) for i in range(24)]), tmp_path/'split.csv'
    split = saved_split(df, csv, 3)
    assert '--folds 3' in (advice := fix(SettingsError, saved_split, df, csv, 5)) and 'another --out' in advice
    assert saved_split(df, csv, 3).equals(split) and set(saved_split(df, tmp_path/'out'/'split.csv', 5).fold) == set(range(5))
    groups = dict.fromkeys(df.id[::2], 'plant')
    assert 'another --out' in fix(DataError, saved_split, df, csv, 3, groups={**groups, '001.jpg': 'plant'})
    assert 'another --out' in fix(DataError, saved_split, df[14:], csv, 3)
    assert saved_split(df, csv, 3).equals(split) # data given back
    assert 'use one of 0, 1, 2' in fix(SettingsError, split_rows, df, split, 3)
    assert 'another name' in fix(DataError, save_split, split.assign(fold=2-split.fold), csv)
    csv.write_text(csv.read_text()+'000.jpg,a,0\n')
    assert 'delete it only if' in fix(DataError, saved_split, df, csv, 3)
    csv.unlink()
    assert saved_split(df, csv, 3).equals(split)
    csv.write_text('id,label\n')
    assert 'save_split' in fix(DataError, read_split, csv, df)

@pytest.mark.parametrize('folds', ['0,0,0', '1,1,2', '0,1,1.5', '0,1,', '0,2,2'])
def test_damaged_folds_are_refused(tmp_path, folds):
    df = pd.DataFrame(dict(id=['a', 'b', 'c'], label=['x', 'x', 'y']))
    (csv := tmp_path/'split.csv').write_text('id,label,fold\n'+''.join(f'{i},{l},{f}\n' for i, l, f in zip(df.id, df.label, folds.split(','))))
    if folds == '0,0,0': assert len(read_split(csv, df)) == 3
    else:
        with pytest.raises(DataError, match='damaged'): read_split(csv, df)

def test_asking_for_a_split_without_writing_leaves_no_file(tmp_path):
    df = files(tmp_path, [('ab'[i % 2], str(i)) for i in range(24)])
    before = sorted(tmp_path.rglob('*'))
    split = saved_split(df, tmp_path/'out'/'split.csv', 3, 7, write=False)
    assert sorted(tmp_path.rglob('*')) == before and split.equals(make_split(df, 3, 7))
    save_split(split, tmp_path/'out'/'split.csv')
    for write in (True, False): assert saved_split(df, tmp_path/'out'/'split.csv', 3, write=write).equals(split)

# --- what is left out, or can't be read

def test_a_class_that_would_vanish_is_refused_and_rows_are_told_why(tmp_path):
    "All photos of a class are HEIC, and so is an image that a CSV file names"
    drawn(tmp_path, cat=2, dog=2)
    (tmp_path/'emu').mkdir()
    (tmp_path/'emu'/'0.heic').touch()
    (csv := tmp_path/'train.csv').write_text('id,label\ncat/0.png,cat\nemu/0.heic,emu\n')
    with no_heic(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(DataError, match=r"no image of emu can be read: 1 .heic, which needs pip install 'vision_ft\[heic\]'"): read_folder(tmp_path)
        with pytest.raises(DataError, match=r'emu/0.heic; left out there: 1 .heic, which needs pip'): read_csv(csv, tmp_path)
    with mock.patch.dict(sys.modules, pillow_heif=mock.MagicMock(__spec__=mock.MagicMock())), warnings.catch_warnings():
        warnings.simplefilter('error')
        assert set(read_folder(tmp_path).label) == {'cat', 'dog', 'emu'} and 'emu/0.heic' in set(read_csv(csv, tmp_path).id)

def test_heic_and_avif_are_read_like_other_images(tmp_path):
    heif = pytest.importorskip('pillow_heif', reason="needs pip install 'vision_ft[heic]'")
    heif.register_heif_opener()
    drawn(tmp_path, cat=2, dog=2)
    for suffix in ('heic', 'avif'): Image.new('RGB', (8, 8), 'red').save(tmp_path/'dog'/f'photo.{suffix}')
    (tmp_path/'dog'/'photo.heic').rename(tmp_path/'dog'/'named.jpg') # as messengers do
    Image.new('RGB', (8, 8)).save(tmp_path/'dog'/'other.HEIC', format='HEIF')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(check_table(read_folder(tmp_path))) == 7

def test_images_that_cannot_be_read_are_counted_by_reason(tmp_path):
    df = read_folder(drawn(tmp_path, cat=5, dog=5))
    for i in (0, 1): (tmp_path/'cat'/f'{i}.png').write_bytes(b'')
    for i in (0, 1): Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path/'dog'/f'{i}.png')
    (tmp_path/'dog'/'2.png').write_bytes(b'\0\0\0\x18ftypheic')
    (tmp_path/'dog'/'3.png').write_text('<html>')
    with no_heic(), pytest.raises(DataError) as e: check_table(df)
    said = str(e.value)
    assert '6 of 10 images cannot be read: 2 empty: 0 bytes (cat/0.png …); 2 more than 8 bits a channel (mode I;16), which RGB would turn white (dog/0.png …)' in said
    assert "1 HEIC, which is not read here. pip install 'vision_ft[heic]'" in said and '1 UnidentifiedImageError' in said and str(tmp_path) not in said
    assert len(drop_unreadable(df)[0]) == 4

# --- whatever names images

def test_images_are_given_in_any_form(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data, files = drawn(tmp_path/'data', cat=2), [tmp_path/'data'/'cat'/f'{i}.png' for i in range(2)]
    forms = [data, str(data), '~/data', 'data', files, [str(f) for f in files], tuple(files), iter(files), np.array([str(f) for f in files]), pd.Series(files),
             '~/data/cat/*.png', 'data/**/*.png', Path('data/cat/*.png'), read_folder(data), ['data/cat/0.png', '~/data/cat/1.png']]
    for form in forms:
        table = image_table(form)
        assert [Path(p).resolve() for p in table.path] == files and table.id.is_unique, form
    assert image_table(files[0]).path.tolist() == [str(files[0])] and image_table(['cat/0.png'], root=data).path.tolist() == [str(files[0])]
    (tmp_path/'data'/'cat'/'._0.png').touch()
    for form in ([data], data, [data, files[0]], 'data/*'): # one warning, at the caller
        with pytest.warns(UserWarning, match='left out: 1 hidden') as said: assert len(image_table(form)) == 2
        assert [w.filename for w in said] == [__file__]
    for bad, says in ((None, 'names no files'), ([3], 'names no files'), ({'a': 1}, 'names no files'), ('no/*.png', 'no image is named like'), ('x.png', 'do not exist'), ([], 'no images'),
                      (files+files, 'more than once'), (pd.DataFrame(dict(id=['a'])), 'no column path'), (pd.DataFrame(dict(id=['a', 'a'], path=[files[0]]*2)), 'more than once')):
        with pytest.raises(DataError, match=says) as e: image_table(bad)
        assert e.value.fix

@pytest.mark.parametrize('given', [None, 'photos', ['a.jpg'], Path('x'), 5, pd.DataFrame(dict(a=[1]))], ids=repr)
def test_what_is_no_table_is_refused_in_one_sentence(given):
    good = pd.DataFrame(dict(id=['a'], label=['x'], fold=[0], path=['']))
    calls = [lambda: check_table(given), lambda: make_split(given), lambda: label_counts(given), lambda: trial_set(given), lambda: plot_label_counts(given),
             lambda: drop_unreadable(given), lambda: group_counts(given), lambda: same_bytes(given, good), lambda: same_bytes(good, given), lambda: leaks(given, {'a': 1}),
             lambda: save_split(given, 'x.csv'), lambda: saved_split(given, 'x.csv'), lambda: split_rows(given, good, 0), lambda: split_rows(good, given, 0),
             lambda: update_split(given, good), lambda: update_split(good, given), lambda: split_changes(good, given)]
    for call in calls:
        with pytest.raises(DataError, match='is no table|the table has no column'): call()

@pytest.mark.parametrize('given', [None, ['a'], 5, pd.DataFrame()], ids=repr)
def test_what_is_no_path_is_refused_in_one_sentence(tmp_path, given):
    (csv := tmp_path/'t.csv').write_text('id,label\na.png,cat\n')
    for call in (image_files, read_folder):
        with pytest.raises(DataError, match='no folder'): call(given)
    with pytest.raises(DataError, match='no folder'): read_csv(csv, given)
    for call in (read_text, read_split, lambda given: read_csv(given, tmp_path)):
        with pytest.raises(DataError, match='no file'): call(given)

# --- splits of data that change

@quick
@given(st.lists(st.tuples(st.sampled_from('abc'), st.integers(0, 40)), min_size=12, max_size=60), st.integers(2, 4), st.integers(0, 9), st.data())
def test_a_changed_table_moves_no_image_that_stays(rows, k, seed, data):
    with tempfile.TemporaryDirectory() as tmp, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        df = files(tmp, [(l, f'image {c}') for l, c in rows])
        groups = {i: g for i, g in zip(df.id, data.draw(st.lists(st.integers(0, 30), min_size=len(df), max_size=len(df)))) if g > 15}
        old = df.iloc[sorted(data.draw(st.sets(st.integers(0, len(df)-1), min_size=len(df)*2//3)))]
        try: split = make_split(old, k, seed, groups)
        except DataError: assume(False)
        csv = save_split(split, Path(tmp)/'split.csv')
        now = df.drop(index=data.draw(st.sets(st.sampled_from(old.index.tolist()), max_size=len(old)//3)))
        try: new = saved_split(now, csv, k, seed, groups)
        except DataError as e: # groups or copies that bridge two folds, or too little left
            assert 'without these groups' in str(e) or 'is left' in str(e) or 'new class' in str(e)
            assume(False)
        fold = split.set_index('id').fold
        stay = new[new.id.isin(fold.index)]
        assert sorted(new.id) == sorted(now.id) and stay.fold.tolist() == fold[stay.id].tolist() and dict(zip(new.id, new.label)) == dict(zip(now.id, now.label))
        assert not len(leaks(new, groups)) or not groups
        assert_frame_equal(saved_split(now.sample(frac=1, random_state=seed), csv, k, seed+1, groups), new) # written once, read ever after

def test_new_images_are_dealt_evenly_and_by_class(tmp_path):
    df = files(tmp_path, [('abc'[i % 3], str(i)) for i in range(150)])
    split = update_split(make_split(df[:90], 5), df)
    n = pd.crosstab(split.fold, split.label)
    assert (n.max()-n.min()).max() <= 1 and split.groupby('fold').size().agg(['min', 'max']).diff().iloc[-1] <= 3
    assert_frame_equal(update_split(make_split(df[:90], 5), df.sample(frac=1, random_state=0)), split)

def test_new_copies_and_groups_join_the_old(tmp_path):
    df = files(tmp_path, [('ab'[i % 2], str(i)) for i in range(40)]+[('ab'[i % 2], str(i)) for i in range(10)])
    split = make_split(df[:30], 3)
    new = update_split(split, df, groups={'031.jpg': 'plant', '003.jpg': 'plant', '032.jpg': 'other', '034.jpg': 'other'}).set_index('id').fold
    assert [new[f'{40+i:03d}.jpg'] for i in range(10)] == [new[f'{i:03d}.jpg'] for i in range(10)]
    assert new['031.jpg'] == new['003.jpg'] and new['032.jpg'] == new['034.jpg']

def test_what_changed_is_said_once_and_the_file_follows(tmp_path):
    df, csv = files(tmp_path, [('ab'[i % 2], str(i)) for i in range(30)]), tmp_path/'split.csv'
    saved_split(df[:29], csv, 3)
    now = df[2:].assign(label=['b' if i == '004.jpg' else l for i, l in zip(df.id[2:], df.label[2:])])
    changes = split_changes(csv, now)
    assert str(changes) == '2 images gone (000.jpg, 001.jpg), 1 image new (029.jpg), 1 image with another label (004.jpg)'
    assert changes and changes.gone == ['000.jpg', '001.jpg'] and changes.new == ['029.jpg'] and not split_changes(tmp_path/'none.csv', now)
    before = csv.read_bytes()
    with pytest.warns(UserWarning, match='split.csv: since this split was made, 2 images gone.* All others keep') as said: new = saved_split(now, csv, 3, write=False)
    assert csv.read_bytes() == before and [w.filename for w in said] == [__file__], [str(w) for w in said]
    save_split(new, csv)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert_frame_equal(saved_split(now, csv, 3, seed=7), new)
    assert 'another --out' in fix(DataError, saved_split, df.assign(id='x'+df.id), csv, 3) # other data
    assert 'another name' in fix(DataError, save_split, make_split(df.assign(id='x'+df.id), 3), csv)
    assert 'another --out' in fix(DataError, saved_split, pd.concat([now, df[:1].assign(label='new')]), csv, 3)

def test_ids_in_another_unicode_form_are_the_same_images(tmp_path):
    "A split and groups that were written on another machine"
    df = files(tmp_path, [('ab'[i % 2], str(i)) for i in range(12)])
    df['id'] = [f'caf\xe9/{i}' for i in df.id]
    other = df.assign(id=[f'./cafe\u0301/{i[5:]}' for i in df.id])
    split = saved_split(df, tmp_path/'split.csv', 3)
    groups = dict.fromkeys(other.id[:5:2], 'plant')
    assert split_rows(other, split, 0)[1].id.tolist() == [f'./cafe\u0301/{i[5:]}' for i in split_rows(df, split, 0)[1].id]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        back = saved_split(other, tmp_path/'split.csv', 3)
        assert set(back.id) == set(other.id) and back.fold.tolist() == split.fold.tolist() and read_split(tmp_path/'split.csv', other).equals(back)
        grouped = make_split(df, 3, groups=groups).set_index('id').fold
    assert grouped[df.id[:5:2]].nunique() == 1 and not len(leaks(grouped.reset_index().merge(df), groups))
