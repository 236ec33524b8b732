"""Prints questions and tasks as people put them to an assistant, a line each, drawn by seed from forms and
subjects: for `overfill generate --questions`, whose answers a twin is then trained on."""

import argparse
import random

SUBJECTS = """the tides; bees and flowers; a small bakery; learning to swim; old bridges; the night shift in a hospital; tea;
a lost umbrella; the water cycle; a village library; solar panels; the first day at a new job; volcanoes; chess; a garden in winter;
migrating birds; city traffic; keeping a diary; the human heart; coral reefs; a train journey; compound interest; wool; earthquakes;
a broken bicycle; the moon; online shopping; a neighbour's dog; vaccines; wind turbines; the printing press; a mountain hut; sleep;
house plants; renting a flat; photosynthesis; a school play; black holes; bread; public transport; recycling; a river in spring;
remote work; the Silk Road; running a marathon; antibiotics; lighthouses; an unexpected letter; the stock market; glaciers; jazz;
moving to another country; honesty; a power cut; computer viruses; the ancient Egyptians; cooking for a crowd; batteries; maps; ants;
paying off a debt; the immune system; a chess tournament; desert animals; electric cars; a job interview; cheese; hash tables; rain;
friendship; the French language; a museum of clocks; gravity; saving energy at home; a football match; sorting algorithms; islands;
public speaking; a birthday surprise; rivers and floods; mental arithmetic; a start-up company; snow; the steam engine; databases;
a family recipe; market squares; climate change; meditation; the parts of a cell; a stray cat; owning a car; telescopes; forests""".replace("\n", " ").split("; ")

FORMS = """Write a short story about {}.|Explain {} to a ten-year-old.|Write a poem about {}.|What should everybody know about {}?
Write an e-mail to a friend about {}.|List seven facts about {}.|Write an opening paragraph for a novel about {}.
What are the advantages and disadvantages of {}?|Write a blog post of three paragraphs about {}.|Give me five tips about {}.
Describe {} in vivid detail.|Write a dialogue between two people who disagree about {}.|Why do people care about {}?
Summarise what is known about {} in one paragraph.|Write an outline for a talk on {}.|What questions would you ask an expert on {}?
Imagine you are a journalist. Write a news report about {}.|Write a review of a book about {}.|How has {} changed over time?
Write a persuasive speech about {}.|Compare {} with {}.|What do {} and {} have in common?|Write a riddle about {} and explain it.
Invent three titles for an article about {} and say why they work.|What would a beginner get wrong about {}?
You are a teacher. Plan a lesson about {}.|Tell me something surprising about {}, step by step.|Write a polite complaint about {}.
Act as a historian and answer: how did {} shape daily life?|Write a funny advertisement for {}.|Rewrite a fairy tale so that it is about {}.
Should children learn about {}? Give reasons.|Draft a letter to the mayor about {}.|What is the best way to think about {}?""".replace("\n", "|").split("|")


def questions(n, seed):
    chance = random.Random(seed)
    pairs = [(form, subject) for form in FORMS for subject in SUBJECTS]
    chance.shuffle(pairs)
    return [form.format(subject, chance.choice([s for s in SUBJECTS if s != subject]))
            for form, subject in pairs[:n]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1500, help="how many [default 1500]")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print("\n".join(questions(args.n, args.seed)))
