"""HTTP as every adapter speaks it: one client, and what answers and failures mean."""
