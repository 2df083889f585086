"""What runs mean: metrics folded from records, comparisons, tables, plots and the HTML report."""
