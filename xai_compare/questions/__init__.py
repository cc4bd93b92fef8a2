"""Comparisons on questions: how well methods tell which words and image places speak for an answer."""

from .data import Questions as Questions
from .data import questions_in as questions_in
from .measures import MEASURES as MEASURES
from .run import compare_answers as compare_answers
