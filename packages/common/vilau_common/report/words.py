"""What the report says of each number, kind, stage and loss, for readers who know none of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A number of results.json in plain words."""

    label: str
    explanation: str


# In the order of the table of results.
MEASURES = {
    "verifier/scene_accuracy": Measure(
        "The judge reads true pictures",
        "A fixed program that learns nothing, the verifier, names the objects in a picture. This is how often it "
        "gets every object of a true picture right; all judging of pictures below rests on it.",
    ),
    "tower/psnr": Measure(
        "Reconstructions look alike",
        "A picture is turned into a few code numbers and drawn again from these alone. PSNR says, in decibels, how "
        "close the pixels come: 6 dB more halve the typical error; at 25 dB it is 6 % of the range from black to "
        "white.",
    ),
    "tower/read_back_accuracy": Measure(
        "Reconstructions show the same",
        "How often the verifier finds in a picture drawn again exactly the objects of the original.",
    ),
    "tower/hard_negative_accuracy": Measure(
        "The codes keep the meaning",
        "How often the vision tower, which here has only the codes of a picture, holds its true caption to fit "
        "better than every caption that differs in one attribute, such as another colour.",
    ),
    "lm/question_accuracy": Measure(
        "Questions answered", "How often the answer to a question about a picture is right, word for word."
    ),
    "lm/draw_object_accuracy": Measure(
        "Objects drawn right",
        "Of all objects that the prompts ask for, the share that the verifier finds in the drawn pictures as asked.",
    ),
    "lm/draw_scene_accuracy": Measure(
        "Pictures drawn right",
        "The share of prompts that describe a whole picture whose drawing has every object right and none extra.",
    ),
    "lm/caption_scene_accuracy": Measure(
        "Pictures described right",
        "How often the description that the model writes of a picture says exactly what is there.",
    ),
    "lm/video_question_object_accuracy": Measure(
        "Videos: what moves, told right",
        "Asked what moves where, how often colour and shape of the moving object are right.",
    ),
    "lm/video_question_direction_accuracy": Measure(
        "Videos: where it moves, told right", "The direction in the same answers."
    ),
    "lm/draw_video_object_accuracy": Measure(
        "Videos: what moves, drawn right",
        "How often in all frames of a drawn video one object changes its place, and it is the one asked for.",
    ),
    "lm/draw_video_direction_accuracy": Measure(
        "Videos: where it moves, drawn right",
        "How often what moves in a drawn video goes in the direction asked for, a place a frame.",
    ),
    "lm/edit_accuracy": Measure(
        "Edits done right",
        "How often a picture that the model was told to change has changed as told, and in nothing else.",
    ),
    "lm/shots_0_accuracy": Measure(
        "Invented names without examples", "There is nothing to go by: one in six can be guessed."
    ),
    "lm/shots_4_accuracy": Measure(
        "Invented names after four examples",
        "How often the model names a picture right after four labelled ones, whose names mean nothing elsewhere.",
    ),
    "lm/story_picture_accuracy": Measure(
        "Stories that hold",
        "The model goes on with a story in words and pictures by itself: how often a picture shows what was told.",
    ),
    "time/total_seconds": Measure(
        "Time for everything",
        "Seconds from preparing the data to the end of the evaluation.",
    ),
}

# Kinds of questions and prompts; a kind that is not named here is shown by its bare name.
KINDS = {
    "absence": "is something not there?",
    "binding": "two objects, each in its own colour",
    "colour": "what colour is it?",
    "colours": "one object in a given colour",
    "count": "how many are there?",
    "counting": "a given number of objects",
    "exists": "is something there?",
    "place": "where is it?",
    "position": "objects at given places, or beside each other",
    "relation": "how two objects stand to each other",
    "scene": "a whole picture, every attribute given",
    "shape": "what shape is it?",
    "single": "one object",
    "size": "how big is it?",
    "two": "two objects",
    "what_at": "what is at a given place?",
}

# Directories of a demo run that hold a training, in the order in which they ran.
STAGES = {
    "clip": Measure(
        "CLIP", "The first model learns which captions fit which pictures; the vision tower starts from it."
    ),
    "tower": Measure(
        "Vision tower", "Learns to turn pictures into codes that keep their meaning, and codes into pictures."
    ),
    "lm": Measure(
        "Language model", "Learns to go on with a text or with a picture's codes, one after the other."
    ),
}

# What takes time; a stage that is not named here is shown by its bare name.
WORK = {
    "start": "loading the program",
    "prepare": "drawing or reading the pictures and writing them to disk",
    "clip": "training the model that the tower starts from",
    "tower": "training the vision tower",
    "tokenize": "turning all training pictures into codes, once",
    "lm": "training the language model",
    "evaluate": "measuring all that is on this page",
}

# Numbers measured from time to time during a training.
EVALUATIONS = {
    "psnr": Measure(
        "PSNR", "How close reconstructions of test pictures come, in decibels; higher is better."
    ),
}

TOTAL = "total"

LOSSES = {
    TOTAL: "what is made small, the weighted sum of the others",
    "commitment": "how far features are from the codes that stand for them",
    "contrastive": "how often pictures and captions are mixed up",
    "l1": "mean pixel difference",
    "l2": "mean squared pixel difference",
    "text": "how unexpected the next word is",
    "visual": "how unexpected the next visual token is",
}
