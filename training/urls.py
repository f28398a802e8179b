"""Pages of training."""

from django.urls import path

from training import estimate_pages, keeping_pages, overview_page, plan_pages, run_pages, views

urlpatterns = [
    path("", overview_page.overview, name="overview"),
    path("datasets/", views.datasets, name="datasets"),
    path("datasets/<int:pk>/", views.dataset, name="dataset"),
    path("datasets/<int:pk>/keep/", keeping_pages.keep_dataset, name="keep-dataset"),
    path("datasets/<int:pk>/erase/", keeping_pages.erase_dataset, name="erase-dataset"),
    path("datasets/<int:pk>/erasure/<slug:verb>/", keeping_pages.decide_erasure, name="decide-erasure"),
    path("training/", run_pages.runs, name="training-runs"),
    path("training/new/", run_pages.new_run, name="new-training-run"),
    path("training/<uuid:pk>/", run_pages.run, name="training-run"),
    path("training/<uuid:pk>/compare/", run_pages.compare_runs, name="compare-training-runs"),
    path("training/<uuid:pk>/keep/", keeping_pages.keep_run, name="keep-training-run"),
    path("training/<uuid:pk>/<slug:verb>/", run_pages.move_run, name="move-training-run"),
    path("estimates/", estimate_pages.estimates, name="estimates"),
    path("rank-analyses/", views.analyses, name="rank-analyses"),
    path("rank-analyses/new/", views.new_analysis, name="new-rank-analysis"),
    path("rank-analyses/<uuid:pk>/", views.analysis, name="rank-analysis"),
    path("rank-analyses/<uuid:pk>/compare/", plan_pages.compare_plans, name="compare-plans"),
    path("rank-analyses/<uuid:pk>/plan/", views.plan, name="rank-analysis-plan"),
    path("rank-analyses/<uuid:pk>/cancel/", views.cancel_analysis, name="cancel-rank-analysis"),
    path("adapters/<slug:slug>/v<int:number>/compress/", views.compress, name="compress-version"),
    path("compressions/<uuid:pk>/", views.compression, name="compression"),
    path("compressions/<uuid:pk>/cancel/", views.cancel_compression, name="cancel-compression"),
]
