"Properties of tables and splits that examples can't cover"
import os, tempfile, warnings
from pathlib import Path
import pandas as pd, pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from pandas.testing import assert_frame_equal
from vision_ft.core import DataError
from vision_ft.data.tables import check_table, group_pairs, leaks, make_split, read_csv, read_folder, read_split, save_split, saved_split, split_rows

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
        with pytest.raises(DataError, match='1 images added'): read_split(csv, added)
        with pytest.raises(DataError, match='1 images relabelled'): read_split(csv, relabelled)
        if len(df) > 1:
            with pytest.raises(DataError, match='1 images removed'): read_split(csv, df.drop(index=i))

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
        assert (n.max()-n.min()).max() <= 3
