"""What is no product: the paper's evaluation reproduced, and the other systems that it compares with."""
