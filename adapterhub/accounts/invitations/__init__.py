"""Invitations to projects: an admin offers a role, and the person accepts or declines it."""
