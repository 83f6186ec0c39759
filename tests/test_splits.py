"Properties of splits that examples can't cover"
import os, re, tempfile, time, warnings
from pathlib import Path
import pandas as pd, pytest, sklearn
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from pandas.testing import assert_frame_equal
from packaging.version import parse
from vision_ft.core import DataError, SettingsError
from vision_ft.data.splits import (find_copies, group_counts, group_pairs, leaks, make_split, read_split, same_bytes, save_split, saved_split, split_changes, split_rows,
                                   update_split)
from vision_ft.data.tables import check_table, read_csv, read_folder, read_text

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

def test_copies_with_two_labels_stay_together_and_are_reported(tmp_path):
    df = files(tmp_path, [('ab'[i % 2], str(i//2 if i < 2 else i)) for i in range(12)])
    with pytest.warns(UserWarning, match='several labels, such as 000.jpg, 001.jpg'): split = make_split(df, 3)
    assert split.fold[0] == split.fold[1]

def test_copies_of_a_joined_table(tmp_path, monkeypatch):
    "Row labels may repeat; only files of a size that another one has are read"
    df = files(tmp_path, [(l, c) for l, c in zip('abcabc', ['xy', 'z', 'xy', 'yx', 'xyz', 'yx'])])
    read = []
    monkeypatch.setattr('vision_ft.data.splits.file_hash', lambda p: read.append(p) or Path(p).read_text())
    both = pd.concat([df[:3], df[3:].reset_index(drop=True)])
    copies = find_copies(both)
    assert copies.id.tolist() == both.id.iloc[[0, 2, 3, 5]].tolist() and copies.file.tolist() == ['xy', 'xy', 'yx', 'yx'] and len(read) == 4
    assert same_bytes(df[:2], df[2:]) == ['002.jpg'] and find_copies(df[:0]).empty

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

# --- what is advised works

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

@pytest.mark.parametrize('given', [None, 'photos', ['a.jpg'], Path('x'), 5, pd.DataFrame(dict(a=[1]))], ids=repr)
def test_what_is_no_table_is_refused_in_one_sentence(given):
    good = pd.DataFrame(dict(id=['a'], label=['x'], fold=[0], path=['']))
    calls = [lambda: make_split(given), lambda: group_counts(given), lambda: find_copies(given), lambda: same_bytes(given, good), lambda: same_bytes(good, given), lambda: leaks(given, {'a': 1}),
             lambda: save_split(given, 'x.csv'), lambda: saved_split(given, 'x.csv'), lambda: split_rows(given, good, 0), lambda: split_rows(good, given, 0),
             lambda: update_split(given, good), lambda: update_split(good, given), lambda: split_changes(good, given)]
    for call in calls:
        with pytest.raises(DataError, match='is no table|the table has no column'): call()

@pytest.mark.parametrize('given', [None, ['a'], 5, pd.DataFrame()], ids=repr)
def test_what_is_no_file_is_refused_in_one_sentence(given):
    with pytest.raises(DataError, match='no file'): read_split(given)

# --- data that change

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
