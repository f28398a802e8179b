"""URLs of training's pages."""

from django.urls import path

from training.pages import (
    datasets_and_analyses,
    estimates,
    evaluations,
    first_steps,
    overview,
    plan_comparison,
    reductions,
    retention,
    run_comparison,
    runs,
    usage,
)

urlpatterns = [
    path("", overview.overview, name="overview"),
    path("first-steps/", first_steps.first_steps, name="first-steps"),
    path("datasets/", datasets_and_analyses.datasets, name="datasets"),
    path("datasets/<int:pk>/", datasets_and_analyses.dataset, name="dataset"),
    path("datasets/<int:pk>/keep/", retention.keep_dataset, name="keep-dataset"),
    path("datasets/<int:pk>/erase/", retention.erase_dataset, name="erase-dataset"),
    path("datasets/<int:pk>/erasure/<slug:verb>/", retention.decide_erasure, name="decide-erasure"),
    path("training/", runs.runs, name="training-runs"),
    path("training/new/", runs.new_run, name="new-training-run"),
    path("training/<uuid:pk>/", runs.run, name="training-run"),
    path("training/<uuid:pk>/compare/", run_comparison.compare_runs, name="compare-training-runs"),
    path("training/<uuid:pk>/keep/", retention.keep_run, name="keep-training-run"),
    path("training/<uuid:pk>/<slug:verb>/", runs.move_run, name="move-training-run"),
    path("usage/", usage.usage_page, name="usage"),
    path("estimates/", estimates.estimates, name="estimates"),
    path("rank-analyses/", datasets_and_analyses.analyses, name="rank-analyses"),
    path("rank-analyses/new/", datasets_and_analyses.new_analysis, name="new-rank-analysis"),
    path("rank-analyses/<uuid:pk>/", datasets_and_analyses.analysis, name="rank-analysis"),
    path("rank-analyses/<uuid:pk>/compare/", plan_comparison.compare_plans, name="compare-plans"),
    path("rank-analyses/<uuid:pk>/plan/", datasets_and_analyses.plan, name="rank-analysis-plan"),
    path("rank-analyses/<uuid:pk>/cancel/", datasets_and_analyses.cancel_analysis, name="cancel-rank-analysis"),
    path("adapters/<reference:slug>/v<int:number>/evaluate/", evaluations.evaluate_version, name="evaluate-version"),
    path("evaluations/", evaluations.evaluations, name="evaluations"),
    path("evaluations/<uuid:pk>/", evaluations.evaluation, name="evaluation"),
    path("evaluations/<uuid:pk>/cancel/", evaluations.cancel_evaluation, name="cancel-evaluation"),
    path("adapters/<reference:slug>/v<int:number>/reduce/", reductions.reduce_version, name="reduce-version"),
    path("adapters/<reference:slug>/v<int:number>/compress/", datasets_and_analyses.compress, name="compress-version"),
    path("compressions/<uuid:pk>/", datasets_and_analyses.compression, name="compression"),
    path("compressions/<uuid:pk>/cancel/", datasets_and_analyses.cancel_compression, name="cancel-compression"),
]
