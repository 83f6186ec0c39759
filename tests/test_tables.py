"Properties of tables that examples can't cover"
import os, re, sys, tempfile, warnings
from pathlib import Path
from unittest import mock
import numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from vision_ft.core import DataError
from vision_ft.data.tables import (check_table, drop_unreadable, image_files, image_table, label_counts, plot_label_counts, read_csv, read_folder,
                                   read_text, trial_set)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

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
    assert '6 of 10 images cannot be read: 2 empty: 0 bytes (cat/0.png …); 2 of more than 8 bits a channel (mode I;16), which RGB would turn white. save it with 8 bits a channel, all images scaled alike. (dog/0.png …)' in said
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
    for bad, says in ((None, 'names no files'), ([3], 'names no files'), ({'a': 1}, 'names no files'), ('no/*.png', 'no image is named like'), ('x.png', 'there is no file or folder x.png'), ([], 'no images'),
                      (files+files, 'more than once'), (pd.DataFrame(dict(id=['a'])), 'no column path'), (pd.DataFrame(dict(id=['a', 'a'], path=[files[0]]*2)), 'more than once')):
        with pytest.raises(DataError, match=says) as e: image_table(bad)
        assert e.value.fix

@pytest.mark.parametrize('given', [None, 'photos', ['a.jpg'], Path('x'), 5, pd.DataFrame(dict(a=[1]))], ids=repr)
def test_what_is_no_table_is_refused_in_one_sentence(given):
    for call in (check_table, label_counts, trial_set, plot_label_counts, drop_unreadable):
        with pytest.raises(DataError, match='is no table|the table has no column'): call(given)

@pytest.mark.parametrize('given', [None, ['a'], 5, pd.DataFrame()], ids=repr)
def test_what_is_no_path_is_refused_in_one_sentence(tmp_path, given):
    (csv := tmp_path/'t.csv').write_text('id,label\na.png,cat\n')
    for call in (image_files, read_folder):
        with pytest.raises(DataError, match='no folder'): call(given)
    with pytest.raises(DataError, match='no folder'): read_csv(csv, given)
    for call in (read_text, lambda given: read_csv(given, tmp_path)):
        with pytest.raises(DataError, match='no file'): call(given)

def test_a_folder_one_level_too_deep_names_the_inner_one(tmp_path):
    for label in 'ab':
        (tmp_path/'photos'/label).mkdir(parents=True)
        for i in range(3): Image.new('RGB', (8, 8), (i, 0, 0)).save(tmp_path/'photos'/label/f'{i}.png')
    with pytest.raises(DataError, match=f'pass {re.escape(str(tmp_path/"photos"))}, whose'):
        check_table(read_folder(tmp_path))

def test_a_folder_named_like_a_part_beside_classes_is_told(tmp_path):
    for label in ('a', 'b', 'test'):
        (tmp_path/label).mkdir()
        for i in range(3): Image.new('RGB', (8, 8), (i, 0, 0)).save(tmp_path/label/f'{i}.png')
    with pytest.warns(UserWarning, match='test in .* is read as a class'): read_folder(tmp_path)
