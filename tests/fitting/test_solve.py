"""The solver: its model is the head's, its Jacobian is right, and it finds parameters that are known."""

from __future__ import annotations

import copy
import time

import numpy as np
import pytest
import torch

from headwarp.fitting.fit import Observations, settle
from headwarp.fitting.solve import Identity, Solver, SolveWeights
from headwarp.geom.rotation import angle_between, axis_angle_to_matrix, matrix_to_axis_angle


def observed(truth, units=None):
    units = truth.weights if units is None else units
    return Observations(truth.landmarks, units, np.ones(len(units), np.float32))


def degrees(radians):
    return np.degrees(np.asarray(radians))


def random_state(solver, truth, seed=0):
    """A state away from rest in every unknown."""
    rng = np.random.default_rng(seed)
    _, state = solver.start(truth.landmarks, truth.weights)
    state.expression[:] = rng.uniform(0, 0.5, state.expression.shape)
    state.eyelids[:] = rng.uniform(0, 0.5, state.eyelids.shape)
    state.gaze[:] = rng.normal(0, 0.1, state.gaze.shape)
    return solver._moved(state, rng.normal(0, 0.1, (len(state), state.expression.shape[1] + 11)), False)


def person(solver, seed=1):
    shape = np.random.default_rng(seed).normal(0, 0.5, solver.person().shape.shape)
    return Identity(shape, np.zeros((468, 3)))


def test_the_solver_projects_what_the_head_model_says(head, exact_solver, make_truth):
    truth = make_truth(head, 3)
    state, who = random_state(exact_solver, truth), person(exact_solver)
    points = exact_solver.points(truth.view, state, who)
    params = exact_solver.params(state, who)
    # params() clips lids to [0, 1]
    assert state.eyelids.min() >= -0.2
    state.eyelids[:] = params.eyelids.numpy()
    points = exact_solver.points(truth.view, state, who)
    embedding = head.embeddings["mediapipe"]
    world = embedding.points(head(params))[:, : len(exact_solver.index)].double().numpy()
    scale = truth.view.focal / -world[..., 2]
    expected = np.stack([256 + scale * world[..., 0], 250 - scale * world[..., 1]], -1)
    np.testing.assert_allclose(points, expected, atol=5e-3)


@pytest.mark.parametrize("with_reading", [False, True])
def test_jacobian_agrees_with_differences(head, with_reading, make_truth):
    solver = Solver(head) if with_reading else Solver(head, reading=None)
    truth = make_truth(head, 2)
    state, who = random_state(solver, truth), person(solver)
    points, jacobian = solver._project(truth.view, state, who, True, False)
    shapes, step = len(who.shape), 1e-5
    for column in range(0, jacobian.shape[-1], 1 if jacobian.shape[-1] < 60 else 3):
        if column < shapes:
            moved = Identity(who.shape + step * (np.arange(shapes) == column), who.offsets)
            other = solver.points(truth.view, state, moved)
        else:
            change = np.zeros((2, jacobian.shape[-1] - shapes))
            change[:, column - shapes] = step
            other = solver.points(truth.view, solver._moved(state, change, False), who)
        numeric = (other - points).reshape(2, -1) / step
        np.testing.assert_allclose(jacobian[..., column], numeric, atol=2e-4 * max(1, np.abs(numeric).max()))


def test_exact_landmarks_give_the_parameters_back(head, exact_solver, make_truth):
    truth = make_truth(head, 8, shape=0.5)
    view, state, who = settle(exact_solver, observed(truth), offsets=False)
    found = exact_solver.params(state, who)
    assert view.focal > 0
    # with the guessed camera: how the head turned between the frames, and how far the mouth opened
    turned, asked = (axis_angle_to_matrix(p.rotation) for p in (found, truth.params))
    turned, asked = (matrix_to_axis_angle(m @ m[:1].mT) for m in (turned, asked))
    assert degrees(angle_between(turned, asked)).max() < 2.0
    assert degrees((found.jaw - truth.params.jaw)[:, 0].abs()).max() < 2.0
    # with the true camera the pose itself
    _, state = exact_solver.start(truth.landmarks, truth.weights, truth.view)
    state, who = exact_solver.solve(
        truth.landmarks, truth.weights, truth.view, state, exact_solver.person(), shared_shape=True, iterations=20
    )
    found = exact_solver.params(state, who)
    assert degrees(angle_between(found.rotation, truth.params.rotation)).max() < 0.3
    assert degrees((found.jaw - truth.params.jaw)[:, 0].abs()).max() < 0.3
    assert (found.eyelids - truth.params.eyelids).abs().max() < 0.05
    assert degrees(np.abs(state.gaze - truth.gaze)).max() < 2.0
    assert np.abs(state.expression - truth.weights[:, exact_solver.unit_index]).mean() < 0.02


def test_expressions_are_found_without_face_units(head, exact_solver, make_truth):
    """Landmarks alone must show a smile as a smile: strength and side."""
    from headwarp.geom import arkit

    truth = make_truth(head, 4, seed=3, shape=0.3)
    _, state = exact_solver.start(truth.landmarks, truth.weights * 0, truth.view)
    state, _ = exact_solver.solve(
        truth.landmarks, truth.weights * 0, truth.view, state, exact_solver.person(), shared_shape=True, iterations=20
    )
    for name in ("mouthSmileLeft", "mouthSmileRight", "browInnerUp", "browOuterUpLeft"):
        column = int(np.flatnonzero(exact_solver.unit_index == arkit.INDEX[name])[0])
        np.testing.assert_allclose(state.expression[:, column], truth.weights[:, arkit.INDEX[name]], atol=0.2)


def test_noise_of_landmarks_does_little(head, make_truth):
    """One per cent of the eye distance, independent: the head turns by less than half a degree."""
    solver = Solver(head, reading=None)
    truth = make_truth(head, 8)
    rng = np.random.default_rng(0)
    clean, _ = solver.solve(truth.landmarks, truth.weights, truth.view, *start(solver, truth), iterations=8)
    noisy = truth.landmarks + rng.normal(0, 1.3, truth.landmarks.shape)
    disturbed, _ = solver.solve(noisy, truth.weights, truth.view, *start(solver, truth), iterations=8)
    first = solver.params(clean, solver.person()).rotation
    second = solver.params(disturbed, solver.person()).rotation
    assert degrees(angle_between(first, second)).mean() < 0.5


def start(solver, truth):
    _, state = solver.start(truth.landmarks, truth.weights, truth.view)
    return state, solver.person()


def test_frames_without_a_face_are_carried_over(head, make_truth):
    """A gap in a smooth motion is bridged between its ends, whatever the landmarks hold there."""
    solver = Solver(head, reading=None)
    truth = make_truth(head, 24, moving=True)
    confidence = np.ones(24)
    confidence[10:14] = 0
    broken = truth.landmarks.copy()
    broken[10:14] = np.nan
    _, state = solver.start(truth.landmarks, truth.weights, truth.view)
    result, _ = solver.solve(
        broken, truth.weights, truth.view, state, solver.person(), confidence=confidence, smooth=1.0, iterations=8
    )
    assert np.isfinite(result.expression).all()
    angle = np.radians(3)
    turns = angle_between(solver.params(result, solver.person()).rotation[9:15], truth.params.rotation[9:15])
    assert turns.max() < 2 * angle
    steps = np.linalg.norm(np.diff(result.translation[9:15], axis=0), axis=1)
    assert steps.max() < 4 * steps.mean(), "no jump at either end of the gap"


def test_smoothing_removes_jitter_and_keeps_motion(head, make_truth):
    solver = Solver(head, reading=None)
    truth = make_truth(head, 40, moving=True)
    rng = np.random.default_rng(1)
    noisy = truth.landmarks + rng.normal(0, 1.0, truth.landmarks.shape)

    def solved(smooth):
        _, state = solver.start(noisy, truth.weights, truth.view)
        arguments = (noisy, truth.weights, truth.view, state, solver.person())
        return solver.solve(*arguments, smooth=smooth, iterations=8)[0]

    def jitter(state):
        return np.abs(np.diff(state.translation, n=2, axis=0)).mean()

    def travel(state):
        return np.abs(np.diff(state.translation[:, :2], axis=0)).sum()

    rough, smooth = solved(0.0), solved(3.0)
    assert jitter(smooth) < 0.5 * jitter(rough)
    low, high = (np.ptp(s.translation[:, :2], axis=0) for s in (smooth, rough))
    assert (low > 0.9 * high - 1e-3).all()
    assert travel(smooth) < travel(rough)


def test_coupled_step_equals_the_dense_solution(head, make_truth):
    """The block elimination against one big linear system."""
    solver = Solver(head, reading=None)
    truth = make_truth(head, 5, moving=True)
    _, state = solver.start(truth.landmarks, truth.weights, truth.view)
    rng = np.random.default_rng(0)
    width = state.expression.shape[1] + 11
    root = rng.normal(size=(5, width, width))
    normal, gradient = root @ root.transpose(0, 2, 1) + 50 * np.eye(width), rng.normal(size=(5, width))
    step = solver._coupled(normal.copy(), gradient, state, None, 1.0)

    sigma = solver._step_sigma()
    change = solver._difference(state[1:], state[:-1])
    tension = 1 / sigma**2 / (1 + np.square(change / sigma) / solver.weights.step_robust**2)
    matrix, right = np.zeros((5 * width, 5 * width)), -gradient.ravel().copy()
    for f in range(5):
        matrix[f * width : (f + 1) * width, f * width : (f + 1) * width] = normal[f]
    for f in range(4):
        a, b = slice(f * width, (f + 1) * width), slice((f + 1) * width, (f + 2) * width)
        pull = np.diag(tension[f])
        matrix[a, a] += pull
        matrix[b, b] += pull
        matrix[a, b] -= pull
        matrix[b, a] -= pull
        right[a] += tension[f] * change[f]
        right[b] -= tension[f] * change[f]
    np.testing.assert_allclose(step.ravel(), np.linalg.solve(matrix, right), rtol=1e-6, atol=1e-9)


def test_solving_twice_gives_the_same_bits(head, make_truth):
    solver = Solver(head)
    truth = make_truth(head, 4)
    first, second = (settle(solver, observed(truth), offsets=True) for _ in range(2))
    np.testing.assert_array_equal(first[1].expression, second[1].expression)
    np.testing.assert_array_equal(first[2].shape, second[2].shape)


def test_landmarks_that_are_no_numbers_are_refused(head, make_truth):
    solver = Solver(head)
    truth = make_truth(head, 2)
    bad = truth.landmarks.copy()
    bad[1, 5] = np.nan
    with pytest.raises(ValueError, match="finite"):
        solver.start(bad, truth.weights)
    with pytest.raises(ValueError, match="one point"):
        solver.start(np.zeros_like(bad), truth.weights)


def test_a_solve_is_fast_beside_other_threads(head, make_truth):
    """With BLAS threads left at their default this took seconds beside LiteRT."""
    solver = Solver(head)
    truth = make_truth(head, 1)
    settle(solver, observed(truth), offsets=False)
    start_time = time.perf_counter()
    settle(solver, observed(truth), offsets=False)
    assert time.perf_counter() - start_time < 1.0


def test_heads_without_arkit_map_or_eyelids_are_fitted(head, make_truth):
    """FLAME's case: expression coefficients with a Gaussian prior, no lids."""
    plain = copy.copy(head)
    plain._buffers = {**head._buffers, "_arkit": None, "eyelid_dirs": None}
    plain._buffers["_directions"] = head._directions[:-2]  # the lids' two come last
    solver = Solver(plain, SolveWeights(landmark=0.01), reading=None)
    truth = make_truth(head, 6)
    _, state = solver.start(truth.landmarks, truth.weights, truth.view)
    state, who = solver.solve(
        truth.landmarks, truth.weights, truth.view, state, solver.person(), shared_shape=True, iterations=15
    )
    found = solver.params(state, who)
    assert found.expression.shape == (6, head.n_expression)
    assert degrees(angle_between(found.rotation, truth.params.rotation)).max() < 4
    error = solver.points(truth.view, state, who) - truth.landmarks[:, solver.index, :2]
    assert np.linalg.norm(error, axis=-1).mean() < 1.0, "pixels"
    assert torch.isfinite(found.shape).all()


def test_heads_without_embedding_are_refused(head):
    bare = copy.copy(head)
    bare._modules = {**head._modules, "embeddings": torch.nn.ModuleDict()}
    with pytest.raises(ValueError, match="no MediaPipe landmark embedding"):
        Solver(bare)
