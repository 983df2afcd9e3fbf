"""Where models learn: data becomes what a model sees, steps change weights, and what they leave is kept or shared."""
