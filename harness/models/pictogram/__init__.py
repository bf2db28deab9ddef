"""The embedded model: a real, tiny text-to-image AR model that the project trains itself.

grammar    what can be asked, in words, and what a text means        world      scenes that show it
generator  the GPT and the model as the sampler sees it              detector   judge and reward networks
reading    detections against a spec, as chances                     weights    the shipped files
training, train_tokenizer, train_generator, train_draft, train_detector, export, card, verify: how it came to be
"""
