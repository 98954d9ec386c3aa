"""Pictures of volumes: planes, panels, and the preview of a registration."""
