"""Stage `prototypes`: typical rationales of a student's pairs, and the maps that find one for a latent."""
