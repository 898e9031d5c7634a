"""How visitors of Scenes say things: everyday words for actors, places and motions, beside those of the captions.

They are only in the short training captions; the test split and the probes keep the captions' plainer words.
"""

from scenes_captions import towards

NAMES: dict[str, tuple[str, ...]] = {  # further names of actors
    "dog": ("doggy", "doggie", "pup", "pooch"), "cat": ("pussycat", "kitty cat"), "lion": ("big cat with a mane",),
    "tiger": ("big striped cat",), "horse": ("stallion", "foal", "horsey"), "unicorn": ("horse with a horn",),
    "deer": ("bambi", "roe deer"), "cow": ("bull", "calf"), "pig": ("piggy", "hog"), "sheep": ("ram", "ewe"),
    "goat": ("kid goat",), "camel": ("animal with humps",), "giraffe": ("animal with a long neck",),
    "elephant": ("animal with a trunk",), "rhino": ("animal with a horn on its nose",), "mouse": ("little mouse",),
    "rabbit": ("bunny rabbit", "easter bunny"), "hedgehog": ("prickly animal",), "monkey": ("chimp", "gorilla"),
    "polar bear": ("ice bear", "bear"), "koala": ("australian bear",), "panda": ("black and white bear",),
    "penguin": ("bird in a tuxedo",), "rooster": ("cock", "hen"), "owl": ("owlet",), "parrot": ("cockatoo",),
    "duck": ("duckling", "ducky"), "swan": ("cygnet",), "frog": ("froggy", "froggie"), "crocodile": ("croc", "gator"),
    "turtle": ("sea turtle",), "snake": ("viper", "cobra"), "dragon": ("fire dragon",), "dinosaur": ("dino", "t-rex"),
    "whale": ("big whale",), "shark": ("great white",), "octopus": ("squid", "animal with eight arms"),
    "jellyfish": ("jelly fish", "medusa"), "fish": ("fishy", "little fish"), "crab": ("crustacean",),
    "snail": ("slug",), "butterfly": ("moth",), "bee": ("wasp",), "ladybug": ("lady bird", "lady bug", "beetle"),
    "spider": ("tarantula",), "steam train": ("choo choo", "railway", "steam engine"), "bus": ("school bus",),
    "fire truck": ("fire brigade", "firetruck"), "police car": ("police", "cops"), "taxi": ("taxicab",),
    "car": ("auto", "vehicle"), "tractor": ("farm machine",), "motorcycle": ("motor bike",), "bicycle": ("push bike",),
    "sailboat": ("sail boat", "boat", "boat with sails"), "cruise ship": ("big boat", "steamer", "cruise liner"),
    "airplane": ("aeroplane", "aircraft", "airliner"), "helicopter": ("copter",), "rocket": ("spacecraft",),
    "ufo": ("alien spaceship", "aliens", "spaceship of aliens"), "balloon": ("ballon",),
    "firefighter": ("fire fighter",), "ninja": ("ninja warrior",), "princess": ("lady in a purple dress",),
    "superhero": ("super hero", "hero", "hero with a cape"), "wizard": ("warlock", "man with a magic wand"),
    "mermaid": ("sea maiden",), "zombie": ("living dead",), "runner": ("man running", "person running", "sprinter"),
    "dancer": ("woman dancing", "flamenco dancer", "lady in a red dress"),
    "skier": ("man skiing", "person on skis", "somebody skiing"),
    "cyclist": ("man on a bike", "person on a bicycle", "somebody cycling", "bicyclist"), "baby": ("toddler",),
    "ghost": ("phantom", "spirit"), "robot": ("droid",), "pumpkin": ("halloween lantern",),
    "strawberry": ("strawberries",), "banana": ("bananas",), "apple": ("apples",), "carrot": ("carrots",),
    "hamburger": ("ham burger",), "ice cream": ("icecream", "ice-cream"), "donut": ("ring donut",),
    "birthday cake": ("birthday party cake", "cake for a birthday"),
    "cup of coffee": ("coffee", "cup of tea", "hot drink"), "soccer ball": ("soccer", "black and white ball"),
    "basketball": ("basket ball",), "drum": ("drums",), "camera": ("digital camera",),
    "television": ("tv set", "telly"), "laptop": ("pc", "notebook"), "umbrella": ("brolly",),
    "teddy bear": ("cuddly bear", "plush bear"), "present": ("wrapped present", "birthday present"),
    "crown": ("king's crown",), "snowman": ("snow man", "frosty"), "fire": ("flames", "something burning"),
    "alarm clock": ("wake up clock",), "key": ("keys", "door key"),
}  # fmt: skip
PLACES: dict[str, tuple[str, ...]] = {  # further phrases for settings
    "meadow": ("in a field", "outside on the grass", "in the grass", "in a pasture", "in the park", "on a lawn"),
    "snow": ("on snow", "in winter", "where it is snowy", "in the arctic", "on the ice", "on a snowy slope"),
    "beach": ("on a beach", "on the beach", "on the seashore", "on the coast", "near the sea"),
    "underwater": ("in the sea", "in the water", "below the water", "at the bottom of the sea", "in an aquarium"),
    "night sky": ("at night", "under a starry sky", "with stars", "in the dark", "with stars around"),
    "clouds": ("up in the sky", "up in the clouds", "in the air", "above the clouds", "in the blue sky"),
    "road": ("on a road", "on a street", "on a motorway", "along the road", "in the street"),
    "room": ("in the house", "at home", "on the floor", "in the living room", "inside a room", "indoors"),
    "stage": ("on stage", "on the stage", "in the theatre", "in a show", "with red curtains", "before a curtain"),
    "bricks": ("in front of bricks", "at a wall", "next to a brick wall", "with a brick wall behind", "on a wall"),
    "table": ("on the table", "at a picnic", "on a checked tablecloth", "on the kitchen table", "on the tablecloth"),
    "pool": ("in a pool", "in the swimming pool", "at the pool", "in pool water", "by the swimming pool"),
    "forest": ("in the jungle", "in the trees", "in a forest", "in the wood", "deep in the forest"),
    "court": ("in the gym", "on the court", "in a gymnasium", "on a basketball field", "in a sports arena"),
    "desert": ("in a desert", "in the sahara", "on desert sand", "in the dunes", "on the hot sand"),
    "city": ("in a city", "in town", "in the big city", "between skyscrapers", "with tall buildings behind"),
    "sunrise": ("in the mountains", "at sunrise", "early in the morning", "at dawn", "by a mountain", "at daybreak"),
    "sea sunset": ("at sunset", "on the sea at sunset", "in the evening by the sea", "at dusk over the ocean"),
    "bridge": ("by the bridge at night", "at a bridge", "on a bridge", "under a bridge", "near a big red bridge"),
    "space": ("in the cosmos", "in deep space", "floating in space", "in zero gravity", "far out in space"),
}  # fmt: skip
TRAVEL = (  # half of them name both sides: only their order tells which is meant
    "{verb} SIDEwards",
    "{verb} off to the SIDE",
    "go SIDE",
    "rush to the SIDE",
    "{verb} SIDE",
    "hurry SIDE",
    "go to the SIDE hand side",
    "{verb} from OTHER to SIDE",
    "{verb} from the OTHER to the SIDE",
    "go from the OTHER to the SIDE",
    "{verb} from the OTHER side to the SIDE side",
    "move from OTHER to SIDE",
    "pass from OTHER to SIDE",
    "go over from OTHER to SIDE",
)
MOTIONS: dict[str, tuple[str, ...]] = {  # further phrases for motions
    "left": towards("left", TRAVEL), "right": towards("right", TRAVEL),
    "up": (
        "go upwards", "fly up", "fly upwards", "lift off", "take off", "soar", "float up", "shoot up", "rise up",
        "go higher and higher", "climb up", "go to the top", "move to the top", "float into the air",
    ),
    "down": (
        "drop", "drop down", "tumble down", "plunge", "sink", "come down", "fall to the ground", "drop to the ground",
        "go lower and lower", "go downwards", "fall from the sky", "dive down", "sink down",
    ),
    "grow": (
        "come towards me", "come towards the camera", "come nearer", "get bigger and bigger", "get huge",
        "get closer and closer", "come up to the camera", "grow larger", "get larger", "approach", "come at me",
    ),
    "shrink": (
        "get smaller and smaller", "get tiny", "go away", "go far away", "move off into the distance", "recede",
        "become tiny", "get further and further away", "go away from me", "become small", "leave", "get little",
    ),
    "bounce": (
        "leap", "jump around", "hop around", "bob up and down", "go up and down", "jump high", "keep jumping",
        "spring up and down", "hop along", "keep bouncing",
    ),
    "spin": (
        "turn round", "turn round and round", "go round and round", "revolve", "go round in circles", "pirouette",
        "go around", "spin round", "rotate around", "keep spinning", "twist around",
    ),
    "appear": (
        "pop up", "turn up", "come out of nowhere", "appear out of nowhere", "appear suddenly", "materialize",
        "emerge", "come into the picture", "become seen", "come out of thin air",
    ),
    "vanish": (
        "dissolve", "melt away", "vanish suddenly", "disappear into thin air", "dissolve into nothing",
        "become transparent", "disappear from the picture", "go out of sight", "get invisible",
    ),
    "still": (
        "do nothing", "sit still", "hold still", "freeze", "keep still", "stay put", "stand there",
        "stay perfectly still", "keep its place", "rest", "stand around",
    ),
    "zigzag": (
        "weave", "wobble", "wiggle", "sway", "swing", "go from side to side", "move left and right", "shake",
        "go left and right", "dance from side to side", "rock from side to side",
    ),
}  # fmt: skip
VERBS: dict[str, tuple[str, ...]] = {  # further verbs of travel, by the actor's category
    "land": ("trot", "wander", "hurry", "creep", "crawl", "race", "stroll", "travel"),
    "air": ("glide", "soar", "flap", "hover", "travel"), "water": ("paddle", "float", "drift", "travel"),
    "veh": ("race", "speed", "cruise", "travel", "zoom"), "cycle": ("race", "speed", "cruise", "travel"),
    "boat": ("cruise", "drift", "glide", "travel"), "fly": ("soar", "hover", "zoom", "drift", "travel"),
    "person": ("hurry", "jog", "march", "stroll", "race", "dance"), "food": ("roll", "drift", "travel"),
    "thing": ("drift", "glide", "travel"), "ball": ("drift", "travel", "glide"),
}  # fmt: skip
BEFORE: dict[str, tuple[str, ...]] = {  # motions told before the noun
    "up": ("rising", "ascending", "climbing"), "down": ("falling", "dropping", "sinking", "descending"),
    "grow": ("growing", "approaching"), "shrink": ("shrinking", "receding"),
    "bounce": ("bouncing", "jumping", "hopping", "bouncy"), "spin": ("spinning", "rotating", "twirling", "turning"),
    "appear": ("appearing",), "vanish": ("vanishing", "disappearing", "fading"),
    "still": ("motionless", "still", "unmoving", "resting"), "zigzag": ("swaying", "wobbling", "zigzagging"),
}  # fmt: skip
GONE = ("{} is gone", "{} gone", "{} is suddenly gone", "{} is no longer there")  # for vanish
ADJECTIVES = (
    "cute", "funny", "nice", "beautiful", "lovely", "cool", "scary", "crazy", "sweet", "happy", "lonely", "amazing",
    "pretty", "big", "little", "great", "creepy", "real", "cartoon", "colorful", "angry", "adorable",
)  # fmt: skip
LEADS = (
    "show me ", "find ", "i want to see ", "looking for ", "where is ", "video of ", "video with ", "clip with ",
    "please show ", "scene with ", "search for ", "do you have ", "let me see ", "i need ", "the one with ",
)  # fmt: skip
TAILS = (" please", " video", " clip", " scene", " movie", " animation", " in a video")
