"""What is, and what it cost, put together for people and machines to read. Pure: values in, values out."""
