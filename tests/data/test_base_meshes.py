"""The real meshes in the repository, against the collection they were drawn from."""

from pathlib import Path

import h5py
import numpy as np
import yaml
from scipy.spatial import cKDTree

from dual_denoising.clip.features import TextBank
from dual_denoising.data import ASSETS
from dual_denoising.data.base_meshes import open_base_meshes
from dual_denoising.data.folder import Folder
from dual_denoising.data.modelnet import ModelNetH5
from dual_denoising.data.points import normalise
from dual_denoising.data.recipes import known_classes
from dual_denoising.data.sources import Joined, Names, only, plainly_named, read_names, without

BANK = "data/clip_text/clip_vitb32_openai_text.h5"
FOLDER = "data/base_meshes"


def both():
    path, names = f"{FOLDER}/base_meshes_more.h5", f"{FOLDER}/shape_names_more.txt"
    return Joined([open_base_meshes(), ModelNetH5(path, names, "test", "base_meshes")])


def test_every_name_has_a_text_feature_and_every_synonym_a_right_one():
    bank = TextBank(BANK)
    assert bank.lookup(open_base_meshes().class_names).shape == (179, 1, 512)
    known = {"recipes": set(known_classes())}
    tables = yaml.safe_load((ASSETS / "synonyms.yaml").read_text())
    for section, table in tables.items():
        words = {word for word in table.values() if word is not None}
        assert words <= known.get(section, set(bank.names)), section
    assert bank.names == sorted(Names(BANK).class_names)
    assert bank.names == read_names(ASSETS / "clip_text" / "names.txt")


def test_shapes_under_a_recipes_name_are_those_of_the_bank_that_mean_it():
    whole = open_base_meshes()
    found = plainly_named(whole, "recipes", "data/primitives")
    assert len(found) == 94
    assert set(found.class_names) <= set(known_classes())
    by_id = dict(zip(whole.ids, np.array(whole.class_names)[whole.labels], strict=True))
    mine = dict(zip(found.ids, np.array(found.class_names)[found.labels], strict=True))
    assert {by_id[i] for i in mine if mine[i] == "faucet"} == {"water faucet"}
    assert {by_id[i] for i in mine if mine[i] == "chair"} == {"chair"}


def test_names_that_are_never_taught_have_no_recipe_and_no_other_real_shapes():
    whole = both()
    assert len(whole.class_names) == 206
    files = [f"data/classes/{kind}_names.txt" for kind in ("unseen", "validation")]
    unseen, validation = (set(read_names(path)) for path in files)
    assert unseen | validation <= set(whole.class_names)
    assert not unseen & validation
    bank = TextBank(BANK)
    recipes = {bank.spelling(name) for name in known_classes()}
    assert not (unseen | validation) & recipes
    rest, held = without(whole, [*files, "tray"]), only(whole, files)
    assert set(rest.class_names) == set(whole.class_names) - unseen - validation - {"tray"}
    assert set(held.class_names) == unseen | validation
    trays = whole.class_names.index("tray")
    assert len(rest) + len(held) + (whole.labels == trays).sum() == len(whole) == 443


def test_the_files_hold_the_collections_shapes_of_known_names(data_root):
    folder = data_root / "real_meshes"
    whole = ModelNetH5(
        str(folder / "base_meshes.h5"), str(folder / "base_meshes_names.txt"), "test", "all"
    )
    named, here = plainly_named(whole, "base_meshes"), both()
    names = [named.class_names[label] for label in named.labels]
    assert dict(zip(named.ids, names, strict=True)) == {
        key: here.class_names[label] for key, label in zip(here.ids, here.labels, strict=True)
    }
    rows = {key: row for row, key in enumerate(named.ids)}
    for index, key in enumerate(here.ids):
        stored = {tuple(point) for point in named.read(rows[key])}
        assert {tuple(point) for point in here.read(index)} <= stored
    for name in ("test", "more"):
        with h5py.File(ASSETS / "base_meshes" / f"base_meshes_{name}.h5") as file:
            assert file["data"].shape[1:] == (1024, 3)
            assert file.attrs["licence"] == "CC0"


def test_a_clone_is_read_under_the_same_names_as_the_repositorys_own_clouds(data_root):
    """Of the 634 meshes that are here as files; the stored clouds are other draws of them."""
    clone, here = open_base_meshes(str(data_root / "real_meshes" / "base_meshes_glb")), both()
    own = dict(zip(here.ids, (here.class_names[label] for label in here.labels), strict=True))
    stems = [Path(key).stem for key in clone.ids]
    found = dict(zip(stems, (clone.class_names[label] for label in clone.labels), strict=True))
    assert len(found) == len(clone) > 250
    assert found.items() <= own.items()
    for key in ("wine_bottle", "writing_desk"):
        mesh = normalise(clone.read(stems.index(key)))
        stored = normalise(here.read(list(here.ids).index(key)))
        assert cKDTree(mesh).query(stored)[0].max() < 0.15


def test_each_of_kenneys_meshes_has_one_of_the_names_that_are_offered_for_them(data_root):
    whole = Folder(str(data_root / "kenney_meshes"), flat=True)
    named = plainly_named(whole, "kenney_meshes")
    assert list(named.ids) == list(whole.ids)
    assert set(named.class_names) == set(read_names("data/classes/kenney_meshes.txt"))
    by_id = dict(zip(named.ids, np.array(named.class_names)[named.labels], strict=True))
    found = [by_id[f"{mesh}.glb"] for mesh in ("taxi", "bedBunk", "toilet", "stoolBar")]
    assert found == ["car", "bunk bed", "toilet", "stool"]
