"""GLM-4: half of each head is rotated, gate and up are one matrix; GLM-4-0414 has norms behind the branches too."""
