"""Pages of training."""

from django.urls import path

from training import estimate_pages, views

urlpatterns = [
    path("datasets/", views.datasets, name="datasets"),
    path("datasets/<int:pk>/", views.dataset, name="dataset"),
    path("training/", views.runs, name="training-runs"),
    path("training/new/", views.new_run, name="new-training-run"),
    path("training/<uuid:pk>/", views.run, name="training-run"),
    path("training/<uuid:pk>/<slug:verb>/", views.move_run, name="move-training-run"),
    path("estimates/", estimate_pages.estimates, name="estimates"),
    path("rank-analyses/", views.analyses, name="rank-analyses"),
    path("rank-analyses/new/", views.new_analysis, name="new-rank-analysis"),
    path("rank-analyses/<uuid:pk>/", views.analysis, name="rank-analysis"),
    path("rank-analyses/<uuid:pk>/plan/", views.plan, name="rank-analysis-plan"),
    path("rank-analyses/<uuid:pk>/cancel/", views.cancel_analysis, name="cancel-rank-analysis"),
    path("adapters/<slug:slug>/v<int:number>/compress/", views.compress, name="compress-version"),
    path("compressions/<uuid:pk>/", views.compression, name="compression"),
    path("compressions/<uuid:pk>/cancel/", views.cancel_compression, name="cancel-compression"),
]
