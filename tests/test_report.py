"Figures read and change nothing; a page is whole, says what it can't draw, and asks for nothing from outside"
import io, base64, re, shutil, subprocess, warnings
from urllib.parse import unquote
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from PIL import Image
from vision_ft.core import DataError, Preds
from vision_ft.report import Section, class_table, error_table, fig_confusion, fig_errors, fig_losses, figure_html, headline, worst_html, write_report
from vision_ft.stats import wilson

def preds(names, n=60, name='net', seed=0):
    rng = np.random.default_rng(seed)
    return Preds([f'{i}.jpg' for i in range(n)], names, rng.dirichlet(np.ones(len(names)), n), rng.choice(np.array(names, dtype=object), n), name)

def test_errors_are_counted_and_bounded():
    p = preds(['a', 'b', 'c'])
    row = error_table([p]).loc['net']
    assert (row.wrong, row.n) == (p.wrong.sum(), 60)
    assert (row.low, row.high) == pytest.approx(wilson(int(row.wrong), 60))

def test_a_kind_may_lack_a_member():
    ax = fig_errors({'plain': [preds(['a', 'b'])], 'TTA': [preds(['a', 'b']), preds(['a', 'b'], name='all')]}).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ['net', 'all']
    plt.close('all')

def test_many_classes_show_those_with_most_mistakes():
    p = preds([f'c{i:02}' for i in range(60)], n=600)
    ax = fig_confusion(p, most=10).axes[0]
    assert len(ax.get_xticks()) == 10
    plt.close('all')

NAMES = ['中文类别', '🐱 "cat", dog', '$_$ <b>&amp;', 'x'*120, 'NA']

def test_odd_class_names_give_one_sentence_and_no_warning(tmp_path):
    "Glyphs that no font has: one warning a character and figure before, one sentence now"
    p = preds(NAMES)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        page = write_report(tmp_path/'r.html', NAMES[2], [Section(NAMES[1], lambda: fig_confusion(p), NAMES[0]), Section('t', p.df())])
    html = page.read_text(encoding='utf-8')
    assert not [w for w in said if 'Glyph' in str(w.message)]
    assert html.count('have no glyph') == 1 and 'could not be drawn' not in html
    assert '<b>' not in html and '中文类别' in html

def test_other_warnings_pass():
    def draw():
        warnings.warn('something else')
        return plt.figure()
    with pytest.warns(UserWarning, match='something else'): figure_html(draw, '')

def test_a_figure_that_fails_leaves_the_rest(tmp_path):
    page = write_report(tmp_path/'r.html', 'page', [Section('bad', lambda: 1/0), Section('good', lambda: plt.figure())]).read_text()
    assert 'division by zero' in page and page.count('<img') == 1
    assert not plt.get_fignums()

def test_what_cannot_be_shown_writes_nothing(tmp_path):
    with pytest.raises(DataError, match='Fix: '): write_report(tmp_path/'r.html', 'page', [Section('n', 3)])
    assert not list(tmp_path.iterdir())

def test_page_is_self_contained(tmp_path):
    h = pd.DataFrame(dict(epoch=[0, 1], train_loss=[1., .5], valid_loss=[1.1, .7]))
    page = write_report(tmp_path/'r.html', 'page', [Section('loss', lambda: fig_losses({'net': h}), 'curves')]).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page) and '<script' not in page and 'name="viewport"' in page and re.search('alt="Curves of the losses.*net from 1.10 to 0.70', page)

# --- what a reader sees first, and on a small screen

def test_the_headline_counts_the_right_ones():
    p, largest = preds(['a', 'b'], name='net'), preds(['a', 'b'], seed=1, name='largest class')
    right, always = ((o.labels == o.targets).sum() for o in (p, largest))
    assert headline(p, 'test', largest) == f'{right} of 60 test images are right; always the largest class would get {always}.'

def test_classes_and_diagonal_count_the_same():
    p = preds(['a', 'b', 'c'])
    t, ax = class_table(p), fig_confusion(p).axes[0]
    drawn = {(round(o.get_position()[1]), round(o.get_position()[0])): int(o.get_text()) for o in ax.texts}
    for i, name in enumerate(p.vocab):
        of = p.targets == name
        assert (t.images[name], t.right[name]) == (of.sum(), (of & ~p.wrong).sum()) and drawn.get((i, i), 0) == t.right[name]
    assert sum(drawn.values()) == len(p) and t.accuracy.is_monotonic_increasing
    plt.close('all')

LONG = ['a_class_whose_name_is_much_longer_than_a_telephone_is_wide_and_has_no_blank', 'b', 'c']

@pytest.fixture
def page(tmp_path):
    "A page with everything that is wide: labels, paths, tables, figures, mistakes"
    p, folder = preds(LONG, n=30), tmp_path/'photos with # and %'
    folder.mkdir()
    for i in p.ids: Image.new('RGB', (640, 480), (200, 30, 30)).save(folder/i)
    wide = pd.DataFrame([range(40)], columns=[f'column {i}' for i in range(40)])
    sections = [Section('Classes', class_table(p)), Section('wide', wide), Section('Confusion', lambda: fig_confusion(p)), Section('text', 'x'*300),
                Section('Errors', lambda: fig_errors({'plain': [p]})), Section('Worst', worst_html(p, {i: folder/i for i in p.ids}, tmp_path/'out'/'r.html', 6))]
    return write_report(tmp_path/'out'/'r.html', LONG[0], sections, 'one sentence', dict(data='/'+'folder'*40))

def test_mistakes_are_linked_figures_are_sharp_and_described(page):
    html = page.read_text()
    links = [unquote(o) for o in re.findall('href="([^"]+)"', html)]
    assert len(links) == 6 and all((page.parent/o).resolve().is_file() for o in links)
    images = re.findall(r'<img alt="([^"]*)" width="(\d+)" height="(\d+)" src="data:image/\w+;base64,([^"]+)"', html)
    assert len(images) == html.count('<img') == 8 and all(alt for alt, *_ in images)
    for _, width, height, data in images:
        real = Image.open(io.BytesIO(base64.b64decode(data))).size
        assert abs(real[0]-2*int(width)) <= 1 and abs(real[1]-2*int(height)) <= 1

def test_nothing_overflows_a_telephone(page, tmp_path):
    "In a frame of 390 pixels the page is as wide as the frame; what is wider scrolls inside"
    if not (chromium := shutil.which('chromium')): pytest.skip('chromium is not installed: the page is not laid out')
    frame = tmp_path/'frame.html'
    frame.write_text('<iframe id="f" src="out/r.html" style="width:390px;height:800px;border:0"></iframe><script>f.onload = () => '
                     '{const d = f.contentDocument.documentElement; document.title = d.clientWidth + " " + d.scrollWidth}</script>')
    how = [chromium, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--allow-file-access-from-files', f'--user-data-dir={tmp_path/"profile"}',
           '--virtual-time-budget=5000', '--dump-dom', frame.as_uri()]
    got = subprocess.run(how, capture_output=True, text=True, timeout=120)
    assert '<title>390 390</title>' in got.stdout, got.stdout[-300:]+got.stderr[-300:]
