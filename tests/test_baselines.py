"What a network has to beat"
import pandas as pd
from vision_ft.classify.baselines import BASELINES, fit_baselines
from vision_ft.data.tables import read_folder
from vision_ft.samples import digits

def test_baselines_predict_each_table(tmp_path):
    t = read_folder(digits(tmp_path/'d')/'train_images').groupby('label').head(20)
    train, test = t.iloc[::2], t.iloc[1::2]
    (largest, svc), = fit_baselines(train, [test])
    assert [largest.name, svc.name] == list(BASELINES) and (largest.ids == test.id.to_numpy()).all()
    truth = dict(zip(test.id, test.label))
    assert svc.with_targets(truth).error < .3 < largest.with_targets(truth).error
