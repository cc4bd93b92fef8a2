"""placeholder until the part about images is merged"""


class ImageTokens:
    pass


def image_tokens(model, inputs):
    return [[] for _ in inputs["input_ids"]]
