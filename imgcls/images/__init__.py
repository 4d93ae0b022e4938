"""From the bytes of an image to the model's input: formats, decoding, colours and channels, preprocessing.

May be imported by everything above; imports only `errors`, and needs only Pillow and numpy: no torch.
"""
