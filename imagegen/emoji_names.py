"""Two hundred common emoji by their Unicode names: the painter's training favours them, its benchmark asks for them."""

COMMON = tuple(name.strip() for name in """
red apple, green apple, banana, pear, peach, cherries, strawberry, grapes, watermelon, lemon, tangerine, pineapple, coconut, kiwi fruit, tomato, eggplant,
avocado, broccoli, carrot, ear of corn, hot pepper, cucumber, potato, garlic, onion, mushroom, bread, croissant, pretzel, pancakes, waffle, cheese wedge,
bacon, hamburger, french fries, pizza, hot dog, sandwich, taco, egg, popcorn, cookie, doughnut, birthday cake, shortcake, cupcake, chocolate bar, candy,
lollipop, soft ice cream, glass of milk, hot beverage, wine glass, beer mug, tropical drink, sushi, dog face, cat face, mouse face, rabbit face, fox, bear,
panda, koala, tiger face, lion, cow face, pig face, frog, monkey face, chicken, penguin, bird, baby chick, duck, owl, bat, wolf, horse face, unicorn,
honeybee, butterfly, snail, lady beetle, ant, spider, turtle, snake, octopus, crab, fish, tropical fish, dolphin, whale, shark, elephant, giraffe, kangaroo,
camel, sunflower, rose, tulip, cherry blossom, cactus, palm tree, evergreen tree, deciduous tree, four leaf clover, maple leaf, grinning face,
smiling face with sunglasses, smiling face with heart-eyes, winking face, crying face, angry face, sleeping face, face with tears of joy, thinking face,
kissing face, nerd face, partying face, cowboy hat face, skull, ghost, alien, robot, clown face, pile of poo, red heart, orange heart, yellow heart,
green heart, blue heart, purple heart, black heart, broken heart, hundred points, sun, full moon, crescent moon, star, cloud, rainbow, snowflake, snowman,
fire, droplet, umbrella, high voltage, house, castle, tent, mountain, volcano, automobile, taxi, bus, ambulance, fire engine, tractor, bicycle, motorcycle,
airplane, rocket, helicopter, sailboat, ship, train, anchor, soccer ball, basketball, baseball, tennis, volleyball, trophy, guitar, trumpet,
violin, drum, camera, television, mobile phone, laptop, light bulb, key, hammer, scissors, pencil, envelope, bell, balloon, wrapped gift, crown, ring,
gem stone, t-shirt, alarm clock, money bag, bomb, magnet
""".replace("\n", " ").split(","))
