"""SelfLearningTrader A.E.G.I.S.: a self-learning trading daemon for Binance USDⓈ-M futures."""

VERSION = "8.0"
