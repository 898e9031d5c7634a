"""What the app shows: pictures of videos, HTML of results, the heat map, the look."""
