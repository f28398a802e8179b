"""The pages beside those of a project: of the installation's administrator, and of whoever is not signed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from adapterhub.accounts.models import User
from adapterhub.accounts.pages.people import default_token_generator

OF_ADMINISTRATORS = {"people": "/people/", "new-project": "/new-project/"}
OF_STRANGERS = {"login": "/login/"}
NOWHERE = "/nowhere/"


def further_pages(
    page: Any, person: User, watch: Callable[[Any], None] = lambda tab: None
) -> Iterator[tuple[str, Any]]:
    """Yield each page's name with the tab that shows it. The person is an administrator from now on.

    `watch` is called with a tab that is opened beside `page`, before it shows anything.
    """
    User.objects.filter(pk=person.pk).update(is_superuser=True, is_staff=True)
    for name, url in OF_ADMINISTRATORS.items():
        page.goto(url)
        yield name, page
    page.goto(NOWHERE)
    yield "not-found", page
    context = page.context.browser.new_context(base_url=page.url, viewport=page.viewport_size, reduced_motion="reduce")
    stranger = context.new_page()
    watch(stranger)
    for name, url in OF_STRANGERS.items():
        stranger.goto(url)
        yield name, stranger
    invited = User.objects.create_user("hanna", "hanna@example.org")
    stranger.goto(f"/welcome/{invited.pk}/{default_token_generator.make_token(invited)}/")
    stranger.get_by_role("button").first.wait_for()
    yield "choose-password", stranger
    context.close()
