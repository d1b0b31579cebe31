"""What is no question about a picture: greetings, questions without an image, all that the model cannot know. Pure."""

from __future__ import annotations

import random

from idefics_chat.default_model.description_questions import CAPTION_QUESTIONS
from idefics_chat.default_model.question import Question

NO_IMAGE = "I do not see any image."
UNKNOWN = "I do not know. I only know colored shapes."
ABOUT = "I am a small model that talks about colored shapes."
GREETING = "Hello! Show me a picture of some shapes."

TALK: dict[str, tuple[str, ...]] = {
    GREETING: (
        "Hello!",
        "Hello",
        "Hi",
        "Hi!",
        "Hi there!",
        "Hey",
        "Good morning!",
        "Good evening.",
        "Good day!",
        "Hello there.",
    ),
    "You are welcome.": (
        "Thanks!",
        "Thank you.",
        "Thank you!",
        "Thanks a lot!",
        "Great, thanks.",
        "Thank you very much.",
    ),
    "I am happy to help.": (
        "Great!",
        "Well done!",
        "Good job!",
        "Nice!",
        "Very good.",
        "Correct!",
        "That is right.",
        "Cool!",
        "OK.",
    ),
    ABOUT: (
        "Who are you?",
        "What are you?",
        "What can you do?",
        "What is your name?",
        "Tell me about yourself.",
        "Help",
    ),
    "I am fine. Show me a picture of some shapes.": (
        "How are you?",
        "How are you doing?",
        "How do you do?",
        "How is it going?",
    ),
    "Goodbye!": ("Goodbye.", "Bye!", "Bye", "See you!", "Good night.", "See you later."),
}

BLIND_QUESTIONS = (
    *CAPTION_QUESTIONS,
    "How many shapes are there?",
    "How many shapes do you see?",
    "What color is the background?",
    "What color is it?",
    "What shape is it?",
    "What color is the circle?",
    "What color is the square?",
    "What color is the star?",
    "Where is the circle?",
    "Where is the red star?",
    "Is there a circle?",
    "Is there a red square?",
    "Is the circle red?",
    "How big is the triangle?",
    "What is to the left of the circle?",
    "What is on the left?",
    "What was in the first image?",
    "What was in the previous image?",
)

_WORDS = (
    "time money water music history science house school city country book film game dog cat bird fish tree flower car "
    "train plane bread cheese coffee tea football chess piano guitar mountain river ocean moon sun planet weather rain "
    "snow president king queen doctor teacher computer phone internet language word number math physics love life "
    "death war peace law tax job food dinner recipe cake pizza France Germany China Japan India Africa America "
    "Paris London Berlin Tokyo Python Java poem song story joke dream brother sister mother father friend world summer "
    "winter"
)
WORDS = tuple(_WORDS.split())
UNKNOWN_FORMS = (
    "What is the capital of {}?",
    "Who is the president of {}?",
    "What is the price of {}?",
    "What is the meaning of {}?",
    "Tell me about {}.",
    "Tell me a {}.",
    "Write a {} for me.",
    "What do you think about {}?",
    "How do I learn {}?",
    "Where can I buy {}?",
    "How does {} work?",
    "Do you like {}?",
    "Who invented {}?",
    "When was {} invented?",
    "Why is {} important?",
    "Explain {} to me.",
    "What is {}?",
    "How old is the {}?",
    "Can you help me with {}?",
    "I like {} and {}.",
    "What is better, {} or {}?",
    "How far is {} from {}?",
    "Translate {} for me.",
    "What time is it?",
    "What day is it today?",
    "How is the weather?",
    "What is two plus two?",
    "What is {} + {}?",
    "Why?",
    "How old are you?",
    "Where do you live?",
    "Sing a song.",
)


def chat(rng: random.Random) -> Question:
    answer = rng.choice(tuple(TALK))
    return Question(rng.choice(TALK[answer]), answer, "small talk")


def blind(rng: random.Random) -> Question:
    """A question about a picture where none was shown."""
    return Question(rng.choice(BLIND_QUESTIONS), NO_IMAGE, "no image")


def unknown(rng: random.Random) -> Question:
    """A question outside the model's world."""
    form = rng.choice(UNKNOWN_FORMS)
    fillers = [rng.choice(WORDS) if rng.random() < 0.85 else str(rng.randrange(100)) for _ in range(2)]
    return Question(form.format(*fillers), UNKNOWN, "unknown")
