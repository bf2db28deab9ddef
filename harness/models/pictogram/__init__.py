"""The embedded model: a real, tiny text-to-image model that the project trains itself.

    grammar    prompts: what can be asked, in words, and what a text means
    world      scenes that show what a prompt asks for
    generator  the GPT, and the model as the engine draws it
    detector   the networks of judge and reward
    reading    how well detections satisfy a prompt
    weights    the shipped files

How the weights were made is in `harness.training`.
"""
