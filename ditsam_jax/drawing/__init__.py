"""What pictures of every command are made of: overlays, captions, contact sheets, random samples."""
