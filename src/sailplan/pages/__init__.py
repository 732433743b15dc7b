"""What HTML pages have in common: how they are rendered and written, their colours, thumbnails."""
