"""What is counted: intervals of rates, and the rates of the paper, each defined once."""
