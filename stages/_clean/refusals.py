"""Recognises an answer that refuses and offers nothing, in English, German, French, Spanish, Italian and Portuguese.

Such an answer begins with a refusal, perhaps after an apology. `I can't` refuses where it is about help, or about
something that one may not give. No sentence after it offers something else.
"""

import re

OPENING_CHARACTERS = 300  # where the refusal must stand
MOST_CHARACTERS = 1000  # a longer answer says more than no


def words(*texts: str) -> str:
    """Returns a pattern of the words in the texts; `_` stands for a blank, `*` for the rest of a word."""
    listed = " ".join(texts).split()
    return "(?:" + "|".join(word.replace("_", " ").replace("*", r"\w*") for word in listed) + ")"


APOLOGY = words(
    "(?:i'?m_|i_am_|we_are_|we're_)?(?:so_|very_|really_|truly_)?(?:sorry|afraid)(?:_that|_you_feel_that_way)?",
    "(?:my_|our_)?apologies (?:i|we)_(?:do_|must_|sincerely_)?apologi[sz]e(?:_for_(?:any|the)_\\w+)?",
    "unfortunately regrettably sadly no oh hi hello there dave thank_you_for_asking",
    "i_(?:understand|appreciate|see|know)[^.!?,]{0,60}",
    "(?:es_)?tut_mir_(?:sehr_)?leid leider entschuldigung entschuldige verzeihung bedauerlicherweise",
    "ich_bedau?re nein",
    "(?:je_suis_)?(?:vraiment_)?(?:désolée?|navrée?) malheureusement je_regrette je_m'excuse excusez-moi",
    "pardon non",
    "lo_siento(?:_mucho)? lo_lamento lamentablemente desafortunadamente desgraciadamente disculp[ae] perdón",
    "me_temo_que",
    "mi_dis?piace(?:_molto)? mi_spiace purtroppo (?:sono_)?spiacente mi_scus[oi] sfortunatamente scusa",
    "temo_che",
    "desculp[ae] sinto_muito lamento infelizmente lamentavelmente peço_desculpas? receio_que",
)
JOINT = r"[\s,.;:!–—-]*(?:(?:but|and|however|that|aber|mais|pero|ma|mas) )?"
I_AM_A_MACHINE = (
    "(?:"
    r"(?:as|being|i'?m|i am)(?: just| only| merely)? (?:an? )?(?:(?:large )?language model|artificial intelligence|"
    r"ai(?: language)?(?: model| assistant| system| chatbot)?)(?=,| and| so| i | developed| trained| made)|"
    r"(?:als|ich bin) (?:eine? )?(?:ki(?:-sprachmodell|-modell|-assistent)?|sprachmodell|"
    r"künstliche intelligenz)\b(?!-)|"
    r"(?:en tant qu(?:e |')|je suis )(?:une? )?(?:modèle de langage|ia|intelligence artificielle|assistant ia)\b|"
    r"(?:como|soy|sou) (?:una? |uma? )?(?:modelo de (?:lenguaje|linguagem)|ia|intelig[eê]ncia artificial|"
    r"asistente de ia|"
    r"assistente de ia)\b|"
    r"(?:come|in quanto|sono) (?:un'?)?(?:modello linguistico|ia|intelligenza artificiale|assistente ia)\b)"
    r"[^.!?\n]{0,60}\b(?:can't|cannot|can not|not|don't|unable|have no|kein\w*|nicht|ne |n'|no|non|não)"
)
I_CANNOT = (
    r"(?:i (?:\w+ )?(?:can't|cannot|can not|couldn't|won't|will not|do not|"
    r"don't)(?: and will not)?,?(?: be able to)?|"
    r"i(?:'m| am) (?:\w+ )?(?:unable|prohibited|not (?!only)\w+)(?: in a position)?(?: to| from| of| with)?|"
    r"i(?:'d| would) (?:rather|prefer) not(?: to)?|"
    r"(?:(?:das|dabei|dazu|hierbei|damit|hier|bei \w+ \w+) )?(?:kann|darf|werde|"
    r"möchte) ich\b[^.!?]{0,50}?\b(?:nichts?|kein\w*)|"
    r"ich (?:kann|darf|werde|möchte)\b[^.!?]{0,50}?\b(?:nichts?|kein\w*)|es ist mir nicht möglich,?|"
    r"ich bin nicht in der lage,?|"
    r"je ne (?:peux|saurais|pourrai)(?: malheureusement)? (?:pas|en aucun cas)(?: malheureusement)?|"
    r"il m'est impossible de|"
    r"je ne (?:peux|saurais) malheureusement pas|je ne suis pas (?:en mesure|autorisée?|capable) (?:de|à)|"
    r"no (?:puedo|podré|voy a|quiero)(?: en ningún caso)?|(?:lamento )?no poder|no me es posible|"
    r"no (?:estoy en condiciones|soy capaz) de|no estoy autorizad[oa] (?:para|a)|"
    r"non (?:posso|potrò|voglio)|non mi è possibile|non (?:sono in grado|mi sento) di|non sono autorizzat[oa] a|"
    r"temo di non poter\w*|di non poter\w*|"
    r"não (?:posso|consigo|poderei|vou)|não me é possível|não sou capaz de|não estou autorizad[oa] a|"
    r"receio não poder)"
)
# What somebody does who is asked for help. I cannot do it, so I refuse.
HELPING = words(
    "(?:possibly_)?help(?!_but\\b|_\\w+ing\\b|_people_move|_feeling|"
    "_myself) assist comply fulfi?ll? participate take_part",
    "engage respond comfortable in_good_conscience in_any_way promote encourage",
    "(?:weiter)?helfen weiter_helfen behilflich unterstützen auskunft beratung teilnehmen_daran",
    "(?:vous_|t'|te_)?(?:aider|assister) encourager",
    "ayudar(?!me)* asistir(?:te|le) (?:aiutar|assister)(?!mi)\\w* ajudar(?!-me)* assistir_(?:voc|com)",
)
# What may be about anything. It refuses if the answer names a request, or something that one may not give.
DOING = words(
    "provide give tell share explain write create generate produce answer discuss(?:ing)? writing sharing",
    "giving browsing continue complete recommend",
    "offer form talk process open do support show browse reveal see call predict describe love permitted",
    "allowed make pretend get go act find access express verify promise hold become build",
    "tun herauszugeben herausgeben produzieren empfehlen teilen diskutieren schreiben erstellen geben sagen",
    "beantworten erfüllen bearbeiten erklären verfassen öffnen haben empfinden tut sagen text",
    "fournir donner répondre écrire créer produire faire expliquer partager générer discuter accéder",
    "participer continuer",
    "dar* hacer* responder* proporcionar* generar* compartir* escribir* participar* crear* cumplir* explicar*",
    "hablar abrir",
    "far* dar* risponder* fornir* generar* condivider* scriver* partecipar* crear* soddisfar* spiegar*",
    "scriver* discuter* parlar*",
    "fazer* dar* responder* fornecer* gerar* partilhar* compartilhar* escrever* participar* criar* atender*",
    "explicar* falar*",
    "continuar* aider* rispettare",
)
FORBIDDEN = words(
    "such (?:that|this|your|these|the)_(?:request|question|topic|subject|conversation|kind|type|one|task|sort|"
    "image|story|recipe)",
    "(?:that|this|any)_information laws?",
    "requests instructions? guidance advice",
    "(?:such|that|this|hateful|sexual)_content content(?=_(?:about|that|like)) policy policies",
    "guidelines illegal* unethical against_the_law break_the_law harm* dangerous hate* hatred weapons? bombs?",
    "explosives? malware",
    "poison* suicide self-harm violence fake opinions? threat* police drugs? steal hack* racist insult*",
    "propaganda plagiarism",
    "denies websites other_customers private_\\w+ personal_\\w+ lyrics lock minors hurt injured irresponsible",
    "endanger* enough_information files pictures viol*",
    "solche[snrm]?_\\w+ diese[rsnm]?_(?:art|anfrage|frage|"
    "bitte) anleitung waffe* gefährlich strafbar persönliche_daten dazu inhalte solche_inhalte",
    "(?:cette|votre|ta)_(?:demande|question) ces_(?:informations|instructions) (?:ce|un)_(?:contenu|texte|"
    "genre) cela contenu",
    "bombe arme haineux violence es[ae]_(?:solicitud|pregunta|información|contenido|tema|mensaje|petición|"
    "tipo) eso en_esto contenido",
    "instrucciones arma odio daño archivos consejos quest[aeo]_(?:richiesta|domanda|contenuto|testo|piano|"
    "argomento) queste una_cosa_simile",
    "istruzioni contenuti un'arma farlo fazer_isso ess[ae]s?_\\w+ est[ae]_(?:pedido|pergunta|conversa) nisso",
    "conteúdo",
    "instruções arma ofensiv* perigos* ess[ae] ilegal* illegale* illég* illicit* ilícit* dangereu* peligros*",
    "pericolos* rechtlich* medizinisch* illegal*",
)
# `I can't answer that.`
THIS_ALONE = (
    r"(?:do|write|writing|share|sharing|answer|discuss|discussing|provide|tell|continue|explain|talk|say|show|"
    r"create|generate)"
    r"(?: (?:you|about|to|with|on))*(?:(?: (?:that|this|so))?(?=[.;!]| because|$)| (?:that|this)(?:, as| as)\b)"
)
DECLINING = (
    r"(?:i (?:must|need to|have to|(?:'m|am) going to(?: have to)?)(?: respectfully)? (?:decline|refuse|pass)"
    r"(?:[.!:]|$|,? because| to (?:answer|write|help|do|provide|continue)| (?:th(?:is|at)|your) (?:request|one)|"
    r" on this one)|"
    r"i'm going to have to decline|i (?:refuse|decline) to (?:take|help|write|answer|do|assist|provide)|"
    r"i (?:do not|don't) feel "
    r"comfortable|(?:that|this|it)(?:'s| is| would be)? (?:request )?(?:not something (?:that )?i(?:'m| am|"
    r" can) (?:can |willing|able|"
    r"help|assist|comfortable)|goes against my|against my|inappropriate for me|outside of what i)|"
    r"(?:my guidelines|my policy) (?:do not|don't|does not)|your request can(?:'t|not) be fulfilled, (?:because|"
    r"as) it|"
    r"helping with this would|we (?:can't|cannot|are unable to) (?:assist with|comply with|fulfi?ll?|"
    r"help with) (?:this|that|your) "
    r"request|i (?:do not|don't) (?:provide instructions|create content|have (?:personal opinions|"
    r"enough information|the ability|"
    r"access to real))|"
    r"ich (?:muss|möchte) (?:diese|die|ihre|deine) (?:bitte|anfrage|frage) (?:leider )?ablehnen|"
    r"das muss ich (?:leider )?ablehnen|"
    r"ich lehne es ab|(?:das (?:kann|darf) ich (?:leider )?nicht|dabei helfe ich (?:leider )?nicht)(?: tun|"
    r" schreiben|"
    r" beantworten| unterstützen)?(?=[.,!])|"
    r"je (?:dois|me vois obligé de) (?:refuser|décliner)(?: cette| votre|\.|$)|je refuse de (?:participer|répondre|"
    r"vous|t'|faire cela)|"
    r"je préfère ne pas (?:répondre|en parler|parler|écrire)|je ne (?:vous|t') ?aiderai pas|cela va à l'encontre|"
    r"(?:debo|tengo que) (?:rechazar|negarme|declinar)(?: es[ta]a?| est[ae]|\.|$)|me niego a (?:escribir|ayudar|"
    r"hacer eso|responder)|"
    r"prefiero no (?:responder|hablar|escribir)|(?:pero )?eso va en contra|"
    r"devo (?:rifiutare|declinare)(?: quest|\.|$)|mi rifiuto di (?:scrivere|aiutare|rispondere)|"
    r"preferisco non (?:parlar|risponder|scriver)|(?:devo|tenho de) recusar(?: est| ess|\.|$)|"
    r"recuso-me a (?:escrever|ajudar|responder)|prefiro não (?:responder|falar|escrever))"
)
GAP = r"(?: \w+'?){0,3}?[ ,']*"  # pronouns and small words between `cannot` and the verb
REFUSAL = re.compile(
    rf"[\s*_#>-]*(?:{APOLOGY}(?!\w){JOINT}){{0,3}}(?:{I_AM_A_MACHINE}|{DECLINING}|"
    rf"(?P<cannot>{I_CANNOT}){GAP}\b(?:{HELPING}\b|(?P<doing>{DOING})\b))",
    re.IGNORECASE,
)
NAMED = re.compile(rf"\b{FORBIDDEN}\b", re.IGNORECASE)
NOTHING_NAMED = re.compile(THIS_ALONE, re.IGNORECASE)
CLOSING = re.compile(
    r"[^.!?\n]*\b(?:any other|anything else|something else|feel free|let me know|please (?:consult|talk|seek|"
    r"reach))\b[^.!?\n]*[.!?]?",
    re.IGNORECASE,
)
OFFER = re.compile(
    r"\b(?:but|however|instead|though)\b(?! (?:i|we) (?:can't|cannot|can not|am not|'m not|am unable|won't|must|"
    r"have to))"
    r"(?! it )[^.!?\n]{0,40}\b(?:can|will|could|may|have|repair|read|would|is|are|ends|mostly|if)\b(?! not\b|'t\b)|"
    r"\b(?:here (?:is|are)|here's|could you|could we|have you|would suit|try (?:another|the)|you (?:can|could|"
    r"may))\b|"
    r"\bi(?:'ve| have| put| will) (?:sent|ordered|opened|found|taken|ask|call|write|it on)|\bi'll\b|"
    r"\bplease (?:update|open|try|send|give|use|go|click|check|fill|hold|leave)\b|"
    r"```|^\s*(?:\d+[.)]|[-*]) |\bthe fix is\b|: (?:use|try|rest|fry) |; most |"
    r"\baber (?!ich kann (?:das|diese|ihnen|dir|dabei)\b.{0,30}nicht|ich darf|das|dabei)|\bhier (?:ist|sind)|"
    r"\bnimm\b|passt mir|"
    r"; die meisten|\bmais (?:vous|voici|samedi|la|sa|je peux)\b|\bvoici\b|\bpero (?:puede|aquí|el|su|puedo)\b|"
    r"\baquí (?:tiene|está)|"
    r"\bma (?:può|ecco|sabato|il|sua|posso)\b|\becco\b|\bmas (?:pode|aqui|no|o|a|posso)\b(?! não)|"
    r"\baqui (?:está|estão)|"
    r"pouvez-vous|¿|puoi\b",
    re.IGNORECASE | re.MULTILINE,
)
APOSTROPHE = re.compile(r"[’‘`´]")
# Any refusal has one of these at its beginning. Most answers have none, and this is much cheaper than REFUSAL.
CLUE = re.compile(
    r"can|n[^\w\s]t|not|unable|refus|d[eé]clin|prohib|against|have no|nicht|kein|ablehn|lehne|ne |"
    r"n[^\w\s]|imposs|encontre|no |"
    r"contra|niego|"
    r"rechaz|non |rifiut|não |recus|prefer|pr[eé]f[eè]r|poder|poter|outside|inapprop|would|pass",
    re.IGNORECASE,
)


def is_refusal(answer: str) -> bool:
    """Whether the answer refuses and offers nothing else."""
    if len(answer) > MOST_CHARACTERS or not CLUE.search(answer[:OPENING_CHARACTERS]):
        return False
    text = APOSTROPHE.sub("'", answer)
    match = REFUSAL.match(text[:OPENING_CHARACTERS])
    if not match:
        return False
    if match["doing"] and not (
        NAMED.search(text, match.start("cannot")) or NOTHING_NAMED.match(text, match.start("doing"))
    ):
        return False
    return not OFFER.search(CLOSING.sub("", text[match.end() :]))
